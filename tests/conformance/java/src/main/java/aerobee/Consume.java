package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import io.netty.channel.Channel;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.netty.NettyRemotingClient;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;

/**
 * Push consumers that stay until stopped, and lite pull consumers that read a given number and go.
 *
 * <p>consume.start: name, namesrv, topic, group; optional tags ("*"), sql, model (clustering, broadcasting), from
 * (first, last, timestamp), since ("yyyyMMddHHmmss"), orderly, fail_times (each message fails this often first), max_retries, list (how many
 * messages to describe), threads, batch, pull_batch, vip, reply (answers requests, after reply_pause_ms), trace (topic of the trace), client_rebalance (false:
 * the broker assigns queues, and says whether to pop), pop_invisible_ms; of orderly ones ledger (a file, see Ledger) with member (a
 * number), pause_us (for each message), fail_every (one message of so many fails once). consume.state and consume.stop: name.
 * consume.cut: name, broker (address); ends the client's connections to it, as a client that has waited in vain does.
 */
final class Consume {
    private static final Map<String, Running> RUNNING = new ConcurrentHashMap<>();

    private static final class Running {
        DefaultMQPushConsumer consumer;
        DefaultMQProducer replies;
        final List<String> replyErrors = Collections.synchronizedList(new ArrayList<>());
        final BitSet seen = new BitSet();
        final Map<String, Integer> queues = new TreeMap<>();
        final Map<String, Integer> lastOfShard = new TreeMap<>();
        final Map<String, Integer> failures = new ConcurrentHashMap<>();
        final List<JSONObject> listed = new ArrayList<>();
        int received;
        int duplicates;
        int disorder;
        int list;

        /** Whether the message counts as consumed; a failing one is told apart by `failTimes`. */
        synchronized boolean take(MessageExt m, int failTimes) {
            if (listed.size() < list) {
                listed.add(describe(m));
            }
            if (failTimes > 0 && failures.merge(m.getMsgId(), 1, Integer::sum) <= failTimes) {
                return false;
            }
            received++;
            queues.merge(m.getBrokerName() + ":" + m.getTopic() + ":" + m.getQueueId(), 1, Integer::sum);
            String sequence = m.getUserProperty("seq");
            if (sequence != null) {
                int number = Integer.parseInt(sequence);
                if (seen.get(number)) {
                    duplicates++;
                }
                seen.set(number);
                String shard = m.getUserProperty("shard");
                if (shard != null) {
                    Integer last = lastOfShard.put(shard, number);
                    if (last != null && last >= number) {
                        disorder++;
                    }
                }
            }
            return true;
        }

        /** Whether the message is one of those that fail, and this is its first time here. */
        synchronized boolean failsNow(MessageExt m, int every) {
            return Integer.parseInt(m.getUserProperty("seq")) % every == every - 1 && failures.put(m.getMsgId(), 1) == null;
        }

        synchronized JSONObject state() {
            JSONObject reply = new JSONObject();
            reply.put("received", received);
            reply.put("distinct", seen.cardinality());
            reply.put("duplicates", duplicates);
            reply.put("disorder", disorder);
            reply.put("queues", queues);
            reply.put("messages", listed);
            reply.put("reply_errors", replyErrors);
            if (consumer != null) {
                List<String> assigned = new ArrayList<>();
                var rebalance = consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl();
                for (MessageQueue queue : rebalance.getPopProcessQueueTable().keySet()) {
                    assigned.add("pop:" + queue.getBrokerName() + ":" + queue.getTopic() + ":" + queue.getQueueId());
                }
                for (MessageQueue queue : rebalance.getProcessQueueTable().keySet()) {
                    if (!queue.getTopic().startsWith("%RETRY%")) {
                        assigned.add(queue.getBrokerName() + ":" + queue.getTopic() + ":" + queue.getQueueId());
                    }
                }
                assigned.sort(null);
                reply.put("assigned", assigned);
                reply.put("client_id", consumer.buildMQClientId());
            }
            return reply;
        }
    }

    static JSONObject describe(MessageExt m) {
        JSONObject one = new JSONObject();
        one.put("topic", m.getTopic());
        one.put("msg_id", m.getMsgId());
        one.put("offset_msg_id", m instanceof org.apache.rocketmq.common.message.MessageClientExt ext ? ext.getOffsetMsgId() : null);
        one.put("queue", m.getQueueId());
        one.put("queue_offset", m.getQueueOffset());
        one.put("tags", m.getTags());
        one.put("keys", m.getKeys());
        one.put("body_size", m.getBody() == null ? -1 : m.getBody().length);
        one.put("body_crc", m.getBodyCRC());
        one.put("sys_flag", m.getSysFlag());
        one.put("flag", m.getFlag());
        one.put("reconsume_times", m.getReconsumeTimes());
        one.put("properties", new TreeMap<>(m.getProperties()));
        one.put("born", m.getBornTimestamp());
        one.put("stored", m.getStoreTimestamp());
        one.put("received", System.currentTimeMillis());
        return one;
    }

    static JSONObject start(JSONObject a) throws Exception {
        Running running = new Running();
        running.list = a.getIntValue("list", 0);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(a.getString("group"));
        consumer.setNamesrvAddr(a.getString("namesrv"));
        consumer.setInstanceName(a.getString("name") + "@" + System.nanoTime());
        consumer.setVipChannelEnabled(a.getBooleanValue("vip", false));
        // A heartbeat that crosses a rebalance leaves the broker with the older subscription until the next one, and a
        // retry topic that its first member has made is looked for by time only: both every 30 s, unless told so.
        consumer.setHeartbeatBrokerInterval(a.getIntValue("heartbeat_ms", 3_000));
        consumer.setUseHeartbeatV2(a.getBooleanValue("heartbeat_v2", false));
        consumer.setPollNameServerInterval(3_000);
        consumer.setConsumeFromWhere(switch (a.getString("from") == null ? "first" : a.getString("from")) {
            case "last" -> ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET;
            case "timestamp" -> ConsumeFromWhere.CONSUME_FROM_TIMESTAMP;
            default -> ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET;
        });
        consumer.setClientRebalance(a.getBooleanValue("client_rebalance", true));
        consumer.setPopInvisibleTime(a.getLongValue("pop_invisible_ms", 60_000));
        if (a.containsKey("trace")) {
            consumer.setEnableTrace(true);
            consumer.setTraceTopic(a.getString("trace").isEmpty() ? null : a.getString("trace"));
        }
        if (a.getString("since") != null) {
            consumer.setConsumeTimestamp(a.getString("since"));
        }
        if ("broadcasting".equals(a.getString("model"))) {
            consumer.setMessageModel(MessageModel.BROADCASTING);
        }
        if (a.containsKey("max_retries")) {
            consumer.setMaxReconsumeTimes(a.getIntValue("max_retries"));
        }
        if (a.containsKey("threads")) {
            consumer.setConsumeThreadMin(a.getIntValue("threads"));
            consumer.setConsumeThreadMax(a.getIntValue("threads"));
        }
        consumer.setConsumeMessageBatchMaxSize(a.getIntValue("batch", 1));
        consumer.setPullBatchSize(a.getIntValue("pull_batch", 32));
        if (a.getString("sql") != null) {
            consumer.subscribe(a.getString("topic"), MessageSelector.bySql(a.getString("sql")));
        } else {
            consumer.subscribe(a.getString("topic"), a.getString("tags") == null ? "*" : a.getString("tags"));
        }
        int failTimes = a.getIntValue("fail_times", 0);
        boolean reply = a.getBooleanValue("reply", false);
        long replyPauseMs = a.getLongValue("reply_pause_ms", 0);
        if (reply) {
            running.replies = new DefaultMQProducer("repliers");
            running.replies.setNamesrvAddr(a.getString("namesrv"));
            running.replies.setInstanceName("r" + System.nanoTime());
            running.replies.start();
        }
        if (a.getBooleanValue("orderly", false)) {
            Ledger ledger = a.containsKey("ledger") ? new Ledger(a.getString("ledger"), a.getIntValue("member")) : null;
            long pauseNanos = a.getLongValue("pause_us", 0) * 1_000;
            int failEvery = a.getIntValue("fail_every", 0);
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                if (ledger != null) {
                    ledger.note(messages);
                    context.setSuspendCurrentQueueTimeMillis(10);
                }
                if (pauseNanos > 0) {
                    LockSupport.parkNanos(pauseNanos * messages.size());
                }
                for (MessageExt m : messages) {
                    if (failEvery > 0 && running.failsNow(m, failEvery)) {
                        return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
                    }
                }
                for (MessageExt m : messages) {
                    if (!running.take(m, failTimes)) {
                        return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
                    }
                }
                return ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                for (MessageExt m : messages) {
                    if (!running.take(m, failTimes)) {
                        if (m.getUserProperty("misplaced") != null) {
                            m.setCommitLogOffset(1L << 50); // the broker will not find it: the client sends it anew
                        }
                        return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                    }
                    if (reply) {
                        LockSupport.parkNanos(replyPauseMs * 1_000_000);
                        answer(running, m);
                    }
                }
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        running.consumer = consumer;
        consumer.start();
        RUNNING.put(a.getString("name"), running);
        return running.state();
    }

    private static void answer(Running running, MessageExt request) {
        try {
            byte[] body = ("reply to " + request.getUserProperty("seq")).getBytes(StandardCharsets.UTF_8);
            Message reply = MessageUtil.createReplyMessage(request, body);
            running.replies.send(reply, 3_000);
        } catch (Exception error) {
            running.replyErrors.add(Program.describe(error));
        }
    }

    private static Running running(JSONObject a) {
        Running running = RUNNING.get(a.getString("name"));
        if (running == null) {
            throw new IllegalArgumentException("no consumer " + a.getString("name"));
        }
        return running;
    }

    static JSONObject cut(JSONObject a) throws Exception {
        Object remoting = running(a).consumer.getDefaultMQPushConsumerImpl().getmQClientFactory().getMQClientAPIImpl().getRemotingClient();
        Field channels = NettyRemotingClient.class.getDeclaredField("channelTables");
        channels.setAccessible(true);
        Object wrapper = ((Map<?, ?>) channels.get(remoting)).get(a.getString("broker"));
        Method channel = wrapper.getClass().getDeclaredMethod("getChannel");
        channel.setAccessible(true);
        ((Channel) channel.invoke(wrapper)).close().sync();
        return new JSONObject();
    }

    /** The counts; with "received" waits up to timeout_ms until that many have come. */
    static JSONObject state(JSONObject a) throws Exception {
        Running running = running(a);
        long deadline = System.nanoTime() + a.getLongValue("timeout_ms", 0) * 1_000_000;
        int wanted = a.getIntValue("received", 0);
        int queues = a.getIntValue("queues", -1);
        while (System.nanoTime() < deadline) {
            synchronized (running) {
                boolean enough = running.received >= wanted;
                if (enough && (queues < 0 || running.state().getJSONArray("assigned").size() == queues)) {
                    break;
                }
            }
            Thread.sleep(20);
        }
        return running.state();
    }

    static JSONObject stop(JSONObject a) {
        Running running = running(a);
        RUNNING.remove(a.getString("name"));
        if (running.replies != null) {
            running.replies.shutdown();
        }
        running.consumer.shutdown();
        return running.state();
    }

    /**
     * Reads with a lite pull consumer. Arguments: namesrv, topic, group; optional assign (queue ids; otherwise it
     * subscribes), seek (offset for every assigned queue), seek_ms (time), tags, sql, expect (stops at so many),
     * timeout_ms, commit, list, batch.
     */
    static JSONObject litePull(JSONObject a) throws Exception {
        Running tally = new Running();
        tally.list = a.getIntValue("list", 0);
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(a.getString("group"));
        consumer.setNamesrvAddr(a.getString("namesrv"));
        consumer.setInstanceName("l" + System.nanoTime());
        consumer.setAutoCommit(false);
        consumer.setHeartbeatBrokerInterval(3_000);
        consumer.setPollNameServerInterval(3_000);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setPullBatchSize(a.getIntValue("batch", 32));
        JSONArray assign = a.getJSONArray("assign");
        if (assign == null && a.getString("sql") != null) {
            consumer.subscribe(a.getString("topic"), MessageSelector.bySql(a.getString("sql")));
        } else if (assign == null) {
            consumer.subscribe(a.getString("topic"), a.getString("tags") == null ? "*" : a.getString("tags"));
        }
        consumer.start();
        try {
            if (assign != null) {
                Collection<MessageQueue> all = consumer.fetchMessageQueues(a.getString("topic"));
                List<MessageQueue> chosen = all.stream().filter(queue -> assign.contains(queue.getQueueId())).toList();
                consumer.assign(chosen);
                for (MessageQueue queue : chosen) {
                    if (a.containsKey("seek")) {
                        consumer.seek(queue, a.getLongValue("seek"));
                    } else if (a.containsKey("seek_ms")) {
                        consumer.seek(queue, consumer.offsetForTimestamp(queue, a.getLongValue("seek_ms")));
                    }
                }
            }
            int expect = a.getIntValue("expect", 1);
            long deadline = System.nanoTime() + a.getLongValue("timeout_ms", 10_000) * 1_000_000;
            // A pull that was under way before the seek may still bring its messages.
            while (tally.received - tally.duplicates < expect && System.nanoTime() < deadline) {
                for (MessageExt m : consumer.poll(200)) {
                    tally.take(m, 0);
                }
            }
            JSONObject reply = tally.state();
            if (a.getBooleanValue("commit", false)) {
                consumer.commit();
                JSONObject committed = new JSONObject();
                for (MessageQueue queue : consumer.assignment()) {
                    committed.put(Integer.toString(queue.getQueueId()), consumer.committed(queue));
                }
                reply.put("committed", committed);
            }
            return reply;
        } finally {
            consumer.shutdown();
        }
    }
}
