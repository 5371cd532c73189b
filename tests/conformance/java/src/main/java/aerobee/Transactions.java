package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * Transactional producers of one group that send until told to stop, and answer questions until closed.
 *
 * <p>transactions.start: name, namesrv, topic, group, producers, pause_ms (between two sends of one), plan (a list of
 * "first answer/answer to questions", used in turn by message number: commit, rollback, unknown), immunity_s (a list
 * as long, 0: none). transactions.state: name. transactions.hush (the first producer sends no more, and goes).
 * transactions.quiet (nobody sends any more). transactions.stop.
 */
final class Transactions {
    private static final Map<String, Running> RUNNING = new ConcurrentHashMap<>();

    private static final class Running implements TransactionListener {
        final JSONObject arguments;
        final JSONArray plan;
        final List<TransactionMQProducer> producers = new ArrayList<>();
        final List<Thread> threads = new ArrayList<>();
        final AtomicInteger next = new AtomicInteger();
        /** Numbers whose half message was acknowledged, so that the local transaction ran. */
        final Set<Integer> executed = new ConcurrentSkipListSet<>();
        final Set<Integer> failed = new ConcurrentSkipListSet<>();
        final Map<Integer, Long> youngest = new ConcurrentHashMap<>();
        final Map<Integer, Integer> asked = new ConcurrentHashMap<>();
        volatile boolean sending = true;
        volatile int firstSender;

        Running(JSONObject arguments) {
            this.arguments = arguments;
            this.plan = arguments.getJSONArray("plan");
        }

        @Override
        public LocalTransactionState executeLocalTransaction(Message message, Object number) {
            executed.add((Integer) number);
            return Produce.state(plan.getString((Integer) number % plan.size()).split("/")[0]);
        }

        @Override
        public LocalTransactionState checkLocalTransaction(MessageExt message) {
            int number = Integer.parseInt(message.getUserProperty("seq"));
            youngest.merge(number, System.currentTimeMillis() - message.getBornTimestamp(), Math::min);
            asked.merge(number, 1, Integer::sum);
            // Without its local transaction, which the sender never ran, the message must not be seen.
            return executed.contains(number)
                ? Produce.state(plan.getString(number % plan.size()).split("/")[1])
                : LocalTransactionState.ROLLBACK_MESSAGE;
        }

        void send(int sender) {
            while (sending && sender >= firstSender) {
                int number = next.getAndIncrement();
                Message message = Produce.message(arguments, number);
                int immunity = arguments.getJSONArray("immunity_s").getIntValue(number % plan.size());
                if (immunity > 0) {
                    message.putUserProperty("CHECK_IMMUNITY_TIME_IN_SECONDS", Integer.toString(immunity));
                }
                try {
                    producers.get(sender).sendMessageInTransaction(message, number);
                } catch (Exception error) {
                    failed.add(number);
                }
                try {
                    Thread.sleep(arguments.getLongValue("pause_ms", 5));
                } catch (InterruptedException e) {
                    return;
                }
            }
        }

        JSONObject state() {
            JSONObject reply = new JSONObject();
            reply.put("executed", executed);
            reply.put("failed", failed);
            reply.put("youngest", new TreeMap<>(youngest));
            reply.put("asked", new TreeMap<>(asked));
            return reply;
        }
    }

    static JSONObject start(JSONObject a) throws Exception {
        Running running = new Running(a);
        for (int i = 0; i < a.getIntValue("producers", 2); i++) {
            TransactionMQProducer producer = new TransactionMQProducer(a.getString("group"));
            Produce.configure(producer, a);
            producer.setTransactionListener(running);
            // A broker that comes back knows its producers from their next heartbeat on.
            producer.setHeartbeatBrokerInterval(500);
            producer.setPollNameServerInterval(1000);
            producer.setRetryTimesWhenSendFailed(0);
            producer.start();
            running.producers.add(producer);
        }
        for (int i = 0; i < running.producers.size(); i++) {
            int sender = i;
            Thread thread = new Thread(() -> running.send(sender), "transactions-" + i);
            running.threads.add(thread);
            thread.start();
        }
        RUNNING.put(a.getString("name"), running);
        return new JSONObject();
    }

    static JSONObject state(JSONObject a) {
        return RUNNING.get(a.getString("name")).state();
    }

    static JSONObject hush(JSONObject a) throws Exception {
        Running running = RUNNING.get(a.getString("name"));
        running.firstSender = 1;
        running.threads.get(0).join();
        running.producers.get(0).shutdown();
        return running.state();
    }

    static JSONObject quiet(JSONObject a) throws Exception {
        Running running = RUNNING.get(a.getString("name"));
        running.sending = false;
        for (Thread thread : running.threads) {
            thread.join();
        }
        return running.state();
    }

    static JSONObject stop(JSONObject a) throws Exception {
        JSONObject reply = quiet(a);
        for (TransactionMQProducer producer : RUNNING.remove(a.getString("name")).producers) {
            producer.shutdown();
        }
        return reply;
    }
}
