package aerobee;

import com.alibaba.fastjson2.JSONObject;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.admin.RollbackStats;
import org.apache.rocketmq.remoting.protocol.body.ConsumeMessageDirectlyResult;
import org.apache.rocketmq.remoting.protocol.body.ConsumerRunningInfo;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/**
 * Questions and orders to the broker through the official admin client; one client a name server, kept for good.
 *
 * <p>Arguments: namesrv, call; for the calls themselves: topic, group, broker (address), broker_name, queue, offset,
 * time_ms, force, client_id, msg_id, source, target, offline. Maps by queue are answered by queue id.
 */
final class Admin {
    private static final Map<String, DefaultMQAdminExt> CLIENTS = new ConcurrentHashMap<>();

    static synchronized DefaultMQAdminExt client(JSONObject a) throws Exception {
        String namesrv = a.getString("namesrv");
        DefaultMQAdminExt admin = CLIENTS.get(namesrv);
        if (admin == null) {
            admin = new DefaultMQAdminExt(10_000);
            admin.setNamesrvAddr(namesrv);
            admin.setInstanceName("a" + System.nanoTime());
            admin.start();
            CLIENTS.put(namesrv, admin);
        }
        return admin;
    }

    static JSONObject run(JSONObject a) throws Exception {
        DefaultMQAdminExt admin = client(a);
        String topic = a.getString("topic");
        String group = a.getString("group");
        JSONObject reply = new JSONObject();
        switch (a.getString("call")) {
            case "reset" -> reply.put("offsets", byQueue(admin.resetOffsetByTimestamp(
                topic, group, a.getLongValue("time_ms"), a.getBooleanValue("force", true))));
            case "reset_offline" -> {
                Map<Integer, Long> offsets = new TreeMap<>();
                for (RollbackStats stats : admin.resetOffsetByTimestampOld(
                    group, topic, a.getLongValue("time_ms"), a.getBooleanValue("force", true))) {
                    offsets.put((int) stats.getQueueId(), stats.getRollbackOffset());
                }
                reply.put("offsets", offsets);
            }
            case "reset_anyway" -> admin.resetOffsetNew(group, topic, a.getLongValue("time_ms"));
            case "reset_queue" -> admin.resetOffsetByQueueId(
                a.getString("broker"), group, topic, a.getIntValue("queue"), a.getLongValue("offset"));
            case "update_offset" -> admin.updateConsumeOffset(
                a.getString("broker"), group, queue(a), a.getLongValue("offset"));
            case "clone" -> admin.cloneGroupOffset(
                a.getString("source"), a.getString("target"), topic, a.getBooleanValue("offline", false));
            case "stats" -> {
                Map<Integer, JSONObject> rows = new TreeMap<>();
                admin.examineConsumeStats(group, topic).getOffsetTable().forEach((queue, offsets) -> {
                    JSONObject row = new JSONObject();
                    row.put("end", offsets.getBrokerOffset());
                    row.put("consumed", offsets.getConsumerOffset());
                    row.put("last_ms", offsets.getLastTimestamp());
                    rows.put(queue.getQueueId(), row);
                });
                reply.put("queues", rows);
            }
            case "status" -> {
                JSONObject clients = new JSONObject();
                admin.getConsumeStatus(topic, group, a.getString("client_id"))
                    .forEach((id, offsets) -> clients.put(id, byQueue(offsets)));
                reply.put("clients", clients);
            }
            case "running_info" -> {
                ConsumerRunningInfo info = admin.getConsumerRunningInfo(
                    group, a.getString("client_id"), a.getBooleanValue("stacks", false));
                reply.put("orderly", info.getProperties().getProperty(ConsumerRunningInfo.PROP_CONSUME_ORDERLY));
                reply.put("type", info.getProperties().getProperty(ConsumerRunningInfo.PROP_CONSUME_TYPE));
                reply.put("subscriptions", info.getSubscriptionSet().stream().map(s -> s.getTopic() + " " + s.getSubString()).sorted().toList());
                Map<String, Long> commits = new TreeMap<>();
                info.getMqTable().forEach((queue, state) -> commits.put(queue.getTopic() + ":" + queue.getQueueId(), state.getCommitOffset()));
                reply.put("commits", commits);
                reply.put("stacks", info.getJstack() != null && info.getJstack().contains("PullMessageService"));
            }
            case "consume" -> {
                ConsumeMessageDirectlyResult result = admin.consumeMessageDirectly(
                    group, a.getString("client_id"), topic, a.getString("msg_id"));
                reply.put("result", String.valueOf(result.getConsumeResult()));
                reply.put("order", result.isOrder());
                reply.put("auto_commit", result.isAutoCommit());
                reply.put("remark", result.getRemark());
            }
            case "time_span" -> {
                Map<Integer, JSONObject> rows = new TreeMap<>();
                admin.queryConsumeTimeSpan(topic, group).forEach(span -> {
                    JSONObject row = new JSONObject();
                    row.put("first_ms", span.getMinTimeStamp());
                    row.put("last_ms", span.getMaxTimeStamp());
                    row.put("consumed_ms", span.getConsumeTimeStamp());
                    row.put("behind_ms", span.getDelayTime());
                    rows.put(span.getMessageQueue().getQueueId(), row);
                });
                reply.put("queues", rows);
            }
            default -> throw new IllegalArgumentException("no call " + a.getString("call"));
        }
        return reply;
    }

    private static MessageQueue queue(JSONObject a) {
        return new MessageQueue(a.getString("topic"), a.getString("broker_name"), a.getIntValue("queue"));
    }

    private static Map<Integer, Long> byQueue(Map<MessageQueue, Long> offsets) {
        Map<Integer, Long> table = new TreeMap<>();
        offsets.forEach((queue, offset) -> table.put(queue.getQueueId(), offset));
        return table;
    }
}
