'use strict';

// Drives ali-ons, the client of RocketMQ's remoting protocol for Node, for the conformance tests: one process serves many
// commands to one cluster (the client keeps an inner producer that all others share).
//
// Standard input has a JSON object a line: "id", "do" (the command's name) and its arguments. Standard output has one
// JSON object a line with the same "id" and either the results or "error". Commands run side by side.

const readline = require('node:readline');
const { Consumer, Message, Producer } = require('ali-ons');

const consumers = new Map();
let instances = 0;

function common(a) {
  return {
    nameSrv: a.namesrv,
    clientIP: '127.0.0.1',
    instanceName: `${++instances}@${process.pid}`,
    httpclient: { request() { throw new Error('name servers are given, not looked up'); } },
  };
}

// Sends numbered messages: body "number:filler", property "seq" = number. Arguments: namesrv, topic, count; optional from
// (first number), size (body bytes), tags (list, used in turn), keys (prefix), shards (messages of one go to one queue),
// properties, level (delay level).
async function produce(a) {
  const producer = new Producer({ ...common(a), producerGroup: 'producers' });
  const reply = { sent: 0, statuses: {}, queues: {}, results: [], errors: {} };
  await producer.ready();
  for (let number = a.from || 0; number < (a.from || 0) + a.count; number++) {
    const message = new Message(a.topic, a.tags ? a.tags[number % a.tags.length] : '', `${number}:`.padEnd(a.size || 16, 'x'));
    Object.assign(message.properties, { seq: `${number}` }, a.properties);
    if (a.keys) message.keys = [ `${a.keys}${number}` ];
    if (a.level) message.delayTimeLevel = a.level;
    if (a.shards) {
      message.shardingKey = `shard ${number % a.shards}`;
      message.properties.shard = `${number % a.shards}`;
    }
    try {
      const result = await producer.send(message);
      const { queueId, brokerName } = result.messageQueue;
      reply.sent++;
      reply.statuses[result.sendStatus] = (reply.statuses[result.sendStatus] || 0) + 1;
      reply.queues[queueId] = (reply.queues[queueId] || 0) + 1;
      reply.results.push({
        status: result.sendStatus, offset_msg_id: result.msgId, queue: Number(queueId), broker: brokerName,
        queue_offset: Number(result.queueOffset),
      });
    } catch (error) {
      reply.errors[error.message] = (reply.errors[error.message] || 0) + 1;
    }
  }
  await producer.close();
  return reply;
}

// Starts a push consumer that stays until stopped. Arguments: name, namesrv, topic, group; optional tags ("*"), model
// (clustering, broadcasting), fail_times (each message fails this often first), list (how many messages to describe).
async function start(a) {
  const consumer = new Consumer({
    ...common(a),
    consumerGroup: a.group,
    isBroadcast: a.model === 'broadcasting',
    consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET',
    // It hears of members that come and go only when it asks.
    rebalanceInterval: 1000,
  });
  const running = { consumer, topic: a.topic, received: 0, duplicates: 0, disorder: 0, seen: new Set(), messages: [] };
  running.queues = {};
  const failures = new Map();
  const lastOfShard = new Map();
  consumer.on('error', error => console.error(error));
  consumers.set(a.name, running);
  consumer.subscribe(a.topic, a.tags || '*', async message => {
    const { seq, shard, UNIQ_KEY: unique } = message.properties;
    if (running.messages.length < (a.list || 0)) running.messages.push(describe(message));
    const failed = failures.get(unique) || 0;
    if (failed < (a.fail_times || 0)) {
      failures.set(unique, failed + 1);
      return Consumer.ACTION_RETRY;
    }
    running.received++;
    running.queues[message.queueId] = (running.queues[message.queueId] || 0) + 1;
    if (running.seen.has(seq)) running.duplicates++;
    running.seen.add(seq);
    if (shard !== undefined) {
      if (Number(seq) <= lastOfShard.get(shard)) running.disorder++;
      lastOfShard.set(shard, Number(seq));
    }
  });
  await consumer.ready();
  return counts(running);
}

function describe(message) {
  return {
    topic: message.topic, offset_msg_id: message.msgId, queue: message.queueId,
    queue_offset: Number(message.queueOffset), tags: message.tags, keys: message.keys,
    body_size: message.body.length, sys_flag: message.sysFlag, reconsume_times: message.reconsumeTimes,
    properties: message.properties, born: Number(message.bornTimestamp), stored: Number(message.storeTimestamp),
    received: Date.now(),
  };
}

function counts(running) {
  const assigned = [ ...running.consumer.processQueueTable.values() ]
    .map(({ messageQueue: queue }) => queue)
    .filter(queue => queue.topic === running.topic)
    .map(queue => `${queue.brokerName}:${queue.topic}:${queue.queueId}`);
  const { received, duplicates, disorder, seen, queues, messages } = running;
  return { received, distinct: seen.size, duplicates, disorder, queues, messages, assigned: assigned.sort() };
}

function running(a) {
  if (!consumers.has(a.name)) throw new Error(`no consumer ${a.name}`);
  return consumers.get(a.name);
}

// The counts; waits up to timeout_ms until so many were "received" and so many "queues" assigned.
async function state(a) {
  const deadline = Date.now() + (a.timeout_ms || 0);
  for (;;) {
    const found = counts(running(a));
    const enough = found.received >= (a.received || 0) && (a.queues === undefined || found.assigned.length === a.queues);
    if (enough || Date.now() >= deadline) return found;
    await new Promise(resolve => setTimeout(resolve, 20));
  }
}

async function stop(a) {
  const ended = running(a);
  const found = counts(ended);
  consumers.delete(a.name);
  await ended.consumer.close();
  return found;
}

const commands = { produce, 'consume.start': start, 'consume.state': state, 'consume.stop': stop };

readline.createInterface({ input: process.stdin }).on('line', async line => {
  const a = JSON.parse(line);
  let reply;
  try {
    reply = await commands[a.do](a);
  } catch (error) {
    reply = { error: `${error.message || error}` };
  }
  process.stdout.write(JSON.stringify({ ...reply, id: a.id }) + '\n');
}).on('close', () => process.exit(0));
