package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * Sends numbered messages: body "number:filler", property "seq" = number.
 *
 * <p>Arguments: namesrv, topic, count; optional group, from (first number), size (body bytes), mode (sync, async,
 * oneway, batch, selector, queue), in_flight, batch, shards, queue, tags (list, used in turn), keys (prefix, the key
 * is prefix + number), key_list (used in turn), priorities (list, used in turn), properties, level (delay level), deliver_ms (from now),
 * delay_ms, delay_s, vip, timeout_ms, threads, max_message (bytes), trace (topic of the trace, "" for Apache's), topics (list, used in turn).
 */
final class Produce {
    static final int MAX_LISTED = 200;

    static JSONObject run(JSONObject a) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(a.getString("group") == null ? "producers" : a.getString("group"));
        configure(producer, a);
        producer.start();
        try {
            return send(producer, a);
        } finally {
            producer.shutdown();
        }
    }

    /** Recalls a message by its handle: namesrv, topic, handle. */
    static JSONObject recall(JSONObject a) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("producers");
        configure(producer, a);
        producer.start();
        try {
            JSONObject reply = new JSONObject();
            reply.put("msg_id", producer.recallMessage(a.getString("topic"), a.getString("handle")));
            return reply;
        } finally {
            producer.shutdown();
        }
    }

    static void configure(DefaultMQProducer producer, JSONObject a) {
        producer.setNamesrvAddr(a.getString("namesrv"));
        producer.setInstanceName("p" + System.nanoTime());
        producer.setSendMsgTimeout(a.getIntValue("timeout_ms", 10_000));
        producer.setVipChannelEnabled(a.getBooleanValue("vip", false));
        if (a.getBooleanValue("auto_batch")) {
            producer.setAutoBatch(true);
            producer.batchMaxDelayMs(a.getIntValue("batch_delay_ms", 20));
        }
        if (a.containsKey("queues")) {
            producer.setDefaultTopicQueueNums(a.getIntValue("queues"));
        }
        if (a.containsKey("retries")) {
            producer.setRetryTimesWhenSendFailed(a.getIntValue("retries"));
        }
        if (a.containsKey("compress_over")) {
            producer.setCompressMsgBodyOverHowmuch(a.getIntValue("compress_over"));
        }
        if (a.containsKey("max_message")) {
            producer.setMaxMessageSize(a.getIntValue("max_message"));
        }
        if (a.containsKey("trace")) {
            producer.setEnableTrace(true);
            producer.setTraceTopic(a.getString("trace").isEmpty() ? null : a.getString("trace"));
        }
        if (a.containsKey("compress_type")) {
            producer.setCompressType(org.apache.rocketmq.common.compression.CompressionType.of(a.getString("compress_type")));
        }
    }

    static Message message(JSONObject a, int number) {
        String text = number + ":";
        byte[] body = Arrays.copyOf(text.getBytes(StandardCharsets.UTF_8), Math.max(text.length(), a.getIntValue("size", 16)));
        Arrays.fill(body, text.length(), body.length, (byte) 'x');
        JSONArray topics = a.getJSONArray("topics");
        Message message = new Message(topics == null ? a.getString("topic") : topics.getString(number % topics.size()), body);
        message.putUserProperty("seq", Integer.toString(number));
        JSONArray tags = a.getJSONArray("tags");
        if (tags != null) {
            message.setTags(tags.getString(number % tags.size()));
        }
        if (a.getString("keys") != null) {
            message.setKeys(a.getString("keys") + (a.getBooleanValue("unnumbered_keys") ? "" : number));
        }
        JSONArray keyList = a.getJSONArray("key_list");
        if (keyList != null) {
            message.setKeys(keyList.getString(number % keyList.size()));
        }
        JSONArray priorities = a.getJSONArray("priorities");
        if (priorities != null) {
            message.setPriority(priorities.getIntValue(number % priorities.size()));
        }
        if (a.getIntValue("level", 0) > 0) {
            message.setDelayTimeLevel(a.getIntValue("level"));
        }
        if (a.containsKey("deliver_ms")) {
            message.setDeliverTimeMs(System.currentTimeMillis() + a.getLongValue("deliver_ms"));
        }
        if (a.containsKey("delay_ms")) {
            message.setDelayTimeMs(a.getLongValue("delay_ms"));
        }
        if (a.containsKey("delay_s")) {
            message.setDelayTimeSec(a.getLongValue("delay_s"));
        }
        JSONObject properties = a.getJSONObject("properties");
        if (properties != null) {
            properties.forEach((name, value) -> message.putUserProperty(name, value.toString()));
        }
        return message;
    }

    private static final class Tally {
        final AtomicInteger sent = new AtomicInteger();
        final Map<String, Integer> statuses = new TreeMap<>();
        final Map<Integer, Integer> queues = new TreeMap<>();
        final List<JSONObject> results = new ArrayList<>();
        final Map<String, Integer> errors = new ConcurrentHashMap<>();

        synchronized void add(SendResult r) {
            sent.incrementAndGet();
            statuses.merge(r.getSendStatus().toString(), 1, Integer::sum);
            queues.merge(r.getMessageQueue().getQueueId(), 1, Integer::sum);
            if (results.size() < MAX_LISTED) {
                results.add(describe(r));
            }
        }

        void failed(Throwable error) {
            String text = Program.describe(error);
            errors.merge(text.substring(0, Math.min(400, text.length())), 1, Integer::sum);
        }

        JSONObject reply(long startedNanos) {
            JSONObject reply = new JSONObject();
            reply.put("sent", sent.get());
            reply.put("statuses", statuses);
            reply.put("queues", queues);
            reply.put("results", results);
            reply.put("errors", errors);
            reply.put("elapsed_ms", (System.nanoTime() - startedNanos) / 1_000_000);
            return reply;
        }
    }

    static JSONObject describe(SendResult r) {
        JSONObject one = new JSONObject();
        one.put("status", r.getSendStatus().toString());
        one.put("msg_id", r.getMsgId());
        one.put("offset_msg_id", r.getOffsetMsgId());
        one.put("queue", r.getMessageQueue().getQueueId());
        one.put("broker", r.getMessageQueue().getBrokerName());
        one.put("queue_offset", r.getQueueOffset());
        one.put("transaction_id", r.getTransactionId());
        one.put("region", r.getRegionId());
        one.put("recall_handle", r.getRecallHandle());
        return one;
    }

    private static JSONObject send(DefaultMQProducer producer, JSONObject a) throws Exception {
        String mode = a.getString("mode") == null ? "sync" : a.getString("mode");
        int count = a.getIntValue("count", 1);
        int from = a.getIntValue("from", 0);
        Tally tally = new Tally();
        // Outside the clock: the first send resolves the route, and creates the topic.
        long started = System.nanoTime();
        switch (mode) {
            case "sync" -> sync(producer, a, from, count, tally);
            case "async" -> async(producer, a, from, count, tally);
            case "oneway" -> {
                for (int i = from; i < from + count - 1; i++) {
                    producer.sendOneway(message(a, i));
                }
                // The answer to the last one says that those in front of it have arrived.
                tally.add(producer.send(message(a, from + count - 1)));
            }
            case "batch" -> batches(producer, a, from, count, tally);
            case "selector" -> {
                int shards = a.getIntValue("shards", 4);
                for (int i = from; i < from + count; i++) {
                    Message message = message(a, i);
                    message.putUserProperty("shard", Integer.toString(i % shards));
                    tally.add(producer.send(message, (queues, m, shard) -> queues.get((Integer) shard % queues.size()), i % shards));
                }
            }
            case "queue" -> {
                String broker = a.getString("broker");
                MessageQueue queue = new MessageQueue(a.getString("topic"), broker, a.getIntValue("queue"));
                for (int i = from; i < from + count; i++) {
                    tally.add(producer.send(message(a, i), queue));
                }
            }
            default -> throw new IllegalArgumentException("no mode " + mode);
        }
        return tally.reply(started);
    }

    private static void sync(DefaultMQProducer producer, JSONObject a, int from, int count, Tally tally) throws Exception {
        int threads = Math.min(a.getIntValue("threads", 1), count);
        AtomicInteger next = new AtomicInteger(from);
        List<Thread> running = new ArrayList<>();
        for (int t = 0; t < threads; t++) {
            Thread thread = new Thread(() -> {
                for (int i = next.getAndIncrement(); i < from + count; i = next.getAndIncrement()) {
                    try {
                        tally.add(producer.send(message(a, i)));
                    } catch (Exception error) {
                        tally.failed(error);
                    }
                }
            });
            thread.start();
            running.add(thread);
        }
        for (Thread thread : running) {
            thread.join();
        }
    }

    private static void async(DefaultMQProducer producer, JSONObject a, int from, int count, Tally tally) throws Exception {
        int inFlight = a.getIntValue("in_flight", 256);
        Semaphore room = new Semaphore(inFlight);
        CountDownLatch done = new CountDownLatch(count);
        for (int i = from; i < from + count; i++) {
            room.acquire();
            producer.send(message(a, i), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    tally.add(result);
                    room.release();
                    done.countDown();
                }

                @Override
                public void onException(Throwable error) {
                    tally.failed(error);
                    room.release();
                    done.countDown();
                }
            });
        }
        if (!done.await(60, TimeUnit.SECONDS)) {
            tally.failed(new IllegalStateException(done.getCount() + " callbacks missing"));
        }
    }

    private static void batches(DefaultMQProducer producer, JSONObject a, int from, int count, Tally tally) throws Exception {
        int size = a.getIntValue("batch", 10);
        MessageQueue queue = a.containsKey("queue")
            ? new MessageQueue(a.getString("topic"), a.getString("broker"), a.getIntValue("queue"))
            : null;
        for (int i = from; i < from + count; i += size) {
            List<Message> batch = new ArrayList<>();
            for (int j = i; j < Math.min(i + size, from + count); j++) {
                batch.add(message(a, j));
            }
            tally.add(queue == null ? producer.send(batch) : producer.send(batch, queue));
        }
    }

    /**
     * Transactional sends. Extra arguments: outcome (commit, rollback, unknown), check (what a check answers),
     * wait_ms (how long to stay for checks).
     */
    static JSONObject transaction(JSONObject a) throws Exception {
        TransactionMQProducer producer = new TransactionMQProducer(a.getString("group") == null ? "transactions" : a.getString("group"));
        configure(producer, a);
        AtomicInteger checks = new AtomicInteger();
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return state(a.getString("outcome"));
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                checks.incrementAndGet();
                return state(a.getString("check"));
            }
        });
        producer.start();
        try {
            Tally tally = new Tally();
            long started = System.nanoTime();
            for (int i = a.getIntValue("from", 0); i < a.getIntValue("from", 0) + a.getIntValue("count", 1); i++) {
                tally.add(producer.sendMessageInTransaction(message(a, i), null));
            }
            Thread.sleep(a.getLongValue("wait_ms", 300));
            JSONObject reply = tally.reply(started);
            reply.put("checks", checks.get());
            return reply;
        } finally {
            producer.shutdown();
        }
    }

    static LocalTransactionState state(String name) {
        return switch (name == null ? "unknown" : name) {
            case "commit" -> LocalTransactionState.COMMIT_MESSAGE;
            case "rollback" -> LocalTransactionState.ROLLBACK_MESSAGE;
            default -> LocalTransactionState.UNKNOW;
        };
    }

    /**
     * Request and reply: sends one request and waits for the reply. Extra arguments: way (sync, callback, selector, queue),
     * linger_ms (how long the requester stays after that).
     */
    static JSONObject request(JSONObject a) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(a.getString("group") == null ? "requesters" : a.getString("group"));
        configure(producer, a);
        producer.start();
        try {
            Message reply;
            try {
                reply = ask(producer, a, message(a, a.getIntValue("from", 0)), a.getLongValue("timeout_ms", 5_000));
            } finally {
                Thread.sleep(a.getLongValue("linger_ms", 0));
            }
            JSONObject result = new JSONObject();
            result.put("body", new String(reply.getBody(), StandardCharsets.UTF_8));
            result.put("properties", reply.getProperties());
            return result;
        } finally {
            producer.shutdown();
        }
    }

    private static Message ask(DefaultMQProducer producer, JSONObject a, Message request, long timeoutMs) throws Exception {
        switch (a.getString("way") == null ? "sync" : a.getString("way")) {
            case "callback" -> {
                CompletableFuture<Message> reply = new CompletableFuture<>();
                producer.request(request, new RequestCallback() {
                    @Override
                    public void onSuccess(Message message) {
                        if (message != null) { // the client also says that the request is sent, with nothing
                            reply.complete(message);
                        }
                    }

                    @Override
                    public void onException(Throwable error) {
                        reply.completeExceptionally(error);
                    }
                }, timeoutMs);
                return reply.get(30, TimeUnit.SECONDS);
            }
            case "selector" -> {
                return producer.request(request, (queues, m, arg) -> queues.get((Integer) arg), 0, timeoutMs);
            }
            case "queue" -> {
                MessageQueue queue = new MessageQueue(a.getString("topic"), a.getString("broker"), a.getIntValue("queue"));
                return producer.request(request, queue, timeoutMs);
            }
            default -> {
                return producer.request(request, timeoutMs);
            }
        }
    }
}
