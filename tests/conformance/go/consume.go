package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

// received counts what came; its reply looks as that of the Java program.
type received struct {
	sync.Mutex
	list        int
	count       int
	duplicates  int
	disorder    int
	seen        map[int]bool
	queues      map[string]int
	lastOfShard map[string]int
	failures    map[string]int
	listed      []Object
	assigned    []string
}

func newReceived(a Object) *received {
	return &received{
		list: a.number("list", 0), seen: map[int]bool{}, queues: map[string]int{}, lastOfShard: map[string]int{},
		failures: map[string]int{}, listed: []Object{}, assigned: []string{},
	}
}

// take says whether the message counts as consumed: it fails failTimes times first.
func (r *received) take(m *primitive.MessageExt, failTimes int) bool {
	r.Lock()
	defer r.Unlock()
	if len(r.listed) < r.list {
		r.listed = append(r.listed, describe(m))
	}
	if failTimes > 0 {
		r.failures[m.MsgId]++
		if r.failures[m.MsgId] <= failTimes {
			return false
		}
	}
	r.count++
	r.queues[queueName(m.Queue)]++
	number, err := strconv.Atoi(m.GetProperty("seq"))
	if err != nil {
		return true
	}
	if r.seen[number] {
		r.duplicates++
	}
	r.seen[number] = true
	if shard := m.GetProperty("shard"); shard != "" {
		if last, known := r.lastOfShard[shard]; known && last >= number {
			r.disorder++
		}
		r.lastOfShard[shard] = number
	}
	return true
}

func (r *received) reply() Object {
	r.Lock()
	defer r.Unlock()
	return Object{
		"received": r.count, "distinct": len(r.seen), "duplicates": r.duplicates, "disorder": r.disorder,
		"queues": r.queues, "messages": r.listed, "assigned": r.assigned,
	}
}

func queueName(queue *primitive.MessageQueue) string {
	return fmt.Sprintf("%s:%s:%d", queue.BrokerName, queue.Topic, queue.QueueId)
}

func describe(m *primitive.MessageExt) Object {
	return Object{
		"topic": m.Topic, "msg_id": m.MsgId, "offset_msg_id": m.OffsetMsgId, "queue": m.Queue.QueueId,
		"queue_offset": m.QueueOffset, "tags": m.GetTags(), "keys": m.GetKeys(), "body_size": len(m.Body),
		"sys_flag": m.SysFlag, "flag": m.Flag, "reconsume_times": m.ReconsumeTimes, "properties": m.GetProperties(),
		"born": m.BornTimestamp, "stored": m.StoreTimestamp, "received": time.Now().UnixMilli(),
		"born_host": m.BornHost, "store_host": m.StoreHost,
	}
}

type running struct {
	*received
	consumer rocketmq.PushConsumer
}

var consumers sync.Map

// consumeStart starts a push consumer that stays until stopped. Arguments: name, namesrv, topic, group; optional tags
// ("*"), sql, model (clustering, broadcasting), from (first, last, timestamp), since, orderly, fail_times (each
// message fails this often first), level (delay level of a retry), max_retries, list (how many messages to describe), batch.
func consumeStart(a Object) (Object, error) {
	r := running{received: newReceived(a)}
	from, known := map[string]consumer.ConsumeFromWhere{
		"first": consumer.ConsumeFromFirstOffset, "last": consumer.ConsumeFromLastOffset,
		"timestamp": consumer.ConsumeFromTimestamp,
	}[a.text("from", "first")]
	if !known {
		return nil, fmt.Errorf("no start %s", a.text("from", ""))
	}
	model := consumer.Clustering
	if a.text("model", "") == "broadcasting" {
		model = consumer.BroadCasting
	}
	topic, orderly := a.text("topic", ""), a.flag("orderly")
	with := []consumer.Option{
		consumer.WithNsResolver(a.nameServer()),
		consumer.WithGroupName(a.text("group", "")),
		consumer.WithInstance(instance(a.text("name", ""))),
		consumer.WithConsumerModel(model),
		consumer.WithConsumeFromWhere(from),
		consumer.WithConsumerOrder(orderly),
		consumer.WithMaxReconsumeTimes(int32(a.number("max_retries", -1))),
		consumer.WithConsumeMessageBatchMaxSize(a.number("batch", 1)),
		consumer.WithStrategy(func(group, own string, all []*primitive.MessageQueue, ids []string) []*primitive.MessageQueue {
			chosen := consumer.AllocateByAveragely(group, own, all, ids)
			r.Lock()
			defer r.Unlock()
			if len(all) > 0 && all[0].Topic == topic {
				r.assigned = r.assigned[:0:0]
				for _, queue := range chosen {
					r.assigned = append(r.assigned, queueName(queue))
				}
			}
			return chosen
		}),
	}
	if since := a.text("since", ""); since != "" {
		with = append(with, consumer.WithConsumeTimestamp(since))
	}
	if orderly {
		with = append(with, consumer.WithSuspendCurrentQueueTimeMillis(50*time.Millisecond))
	}
	c, err := rocketmq.NewPushConsumer(with...)
	if err != nil {
		return nil, err
	}
	r.consumer = c
	failTimes, level := a.number("fail_times", 0), a.number("level", 0)
	handle := func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, m := range messages {
			if r.take(m, failTimes) {
				continue
			}
			if orderly {
				return consumer.SuspendCurrentQueueAMoment, nil
			}
			if concurrently, ok := primitive.GetConcurrentlyCtx(ctx); ok {
				concurrently.DelayLevelWhenNextConsume = level
			}
			return consumer.ConsumeRetryLater, nil
		}
		return consumer.ConsumeSuccess, nil
	}
	if err := c.Subscribe(topic, selector(a), handle); err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	consumers.Store(a.text("name", ""), r)
	return r.reply(), nil
}

func selector(a Object) consumer.MessageSelector {
	if sql := a.text("sql", ""); sql != "" {
		return consumer.MessageSelector{Type: consumer.SQL92, Expression: sql}
	}
	return consumer.MessageSelector{Type: consumer.TAG, Expression: a.text("tags", "*")}
}

// consumeState gives the counts; waits up to timeout_ms until so many were "received" and so many "queues" assigned.
func consumeState(a Object) (Object, error) {
	found, known := consumers.Load(a.text("name", ""))
	if !known {
		return nil, fmt.Errorf("no consumer %s", a.text("name", ""))
	}
	r := found.(running)
	deadline := time.Now().Add(time.Duration(a.number("timeout_ms", 0)) * time.Millisecond)
	wanted, queues := a.number("received", 0), a.number("queues", -1)
	for time.Now().Before(deadline) {
		r.Lock()
		enough := r.count >= wanted && (queues < 0 || len(r.assigned) == queues)
		r.Unlock()
		if enough {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return r.reply(), nil
}

func consumeStop(a Object) (Object, error) {
	found, known := consumers.LoadAndDelete(a.text("name", ""))
	if !known {
		return nil, fmt.Errorf("no consumer %s", a.text("name", ""))
	}
	r := found.(running)
	if err := r.consumer.Shutdown(); err != nil {
		return nil, err
	}
	return r.reply(), nil
}

func pullConsumer(a Object) (rocketmq.PullConsumer, error) {
	c, err := rocketmq.NewPullConsumer(
		consumer.WithNsResolver(a.nameServer()),
		consumer.WithGroupName(a.text("group", "")),
		consumer.WithInstance(instance("pull")),
		consumer.WithMaxReconsumeTimes(int32(a.number("max_retries", -1))),
	)
	if err != nil {
		return nil, err
	}
	if err := c.Subscribe(a.text("topic", ""), selector(a)); err != nil {
		return nil, err
	}
	return c, c.Start()
}

var pullStatuses = map[primitive.PullStatus]string{
	primitive.PullFound: "FOUND", primitive.PullNoNewMsg: "NO_NEW_MSG", primitive.PullNoMsgMatched: "NO_MATCHED_MSG",
	primitive.PullOffsetIllegal: "OFFSET_ILLEGAL", primitive.PullBrokerTimeout: "BROKER_TIMEOUT",
}

// pull reads one queue once. Arguments: namesrv, topic, group, broker, queue, offset; optional tags, max (32),
// commit (an offset to keep at the broker, when the queue has messages), list.
func pull(a Object) (Object, error) {
	c, err := pullConsumer(a)
	if err != nil {
		return nil, err
	}
	defer c.Shutdown()
	queue := &primitive.MessageQueue{
		Topic: a.text("topic", ""), BrokerName: a.text("broker", ""), QueueId: a.number("queue", 0),
	}
	result, err := c.PullFrom(context.Background(), queue, int64(a.number("offset", 0)), a.number("max", 32))
	if err != nil {
		return nil, err
	}
	r := newReceived(a)
	for _, m := range result.GetMessageExts() {
		r.take(m, 0)
	}
	reply := r.reply()
	reply["status"] = pullStatuses[result.Status]
	reply["next"], reply["min"], reply["max"] = result.NextBeginOffset, result.MinOffset, result.MaxOffset
	if commit := a.number("commit", -1); commit >= 0 {
		// It keeps offsets of queues that are its own only: it has this one when it polls from it.
		// It shares queues out when it starts and every 20 s: a first time that failed is made up for by the second.
		for deadline := time.Now().Add(50 * time.Second); time.Now().Before(deadline); {
			got, err := c.Poll(context.Background(), 200*time.Millisecond)
			if err == nil && got.GetMQ().QueueId == queue.QueueId {
				break
			}
		}
		if err := c.UpdateOffset(queue, int64(commit)); err != nil {
			return nil, err
		}
		if err := c.PersistOffset(context.Background(), queue.Topic); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// poll takes messages of a group, each acknowledged, until there are "expect" or timeout_ms is over.
func poll(a Object) (Object, error) {
	c, err := pullConsumer(a)
	if err != nil {
		return nil, err
	}
	defer c.Shutdown()
	r := newReceived(a)
	expect := a.number("expect", 1)
	deadline := time.Now().Add(time.Duration(a.number("timeout_ms", 20_000)) * time.Millisecond)
	for r.count < expect && time.Now().Before(deadline) {
		got, err := c.Poll(context.Background(), 200*time.Millisecond)
		if consumer.IsNoNewMsgError(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range got.GetMsgList() {
			r.take(m, 0)
		}
		c.ACK(context.Background(), got, consumer.ConsumeSuccess)
	}
	return r.reply(), nil
}
