package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.AckResult;
import org.apache.rocketmq.client.consumer.NotifyResult;
import org.apache.rocketmq.client.consumer.PopResult;
import org.apache.rocketmq.client.impl.ClientRemotingProcessor;
import org.apache.rocketmq.client.impl.mqclient.MQClientAPIExt;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.remoting.netty.NettyClientConfig;
import org.apache.rocketmq.remoting.protocol.header.AckMessageRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.ChangeInvisibleTimeRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.ExtraInfoUtil;
import org.apache.rocketmq.remoting.protocol.header.NotificationRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.PopMessageRequestHeader;

/**
 * Pops with the client that Apache's proxy uses. All commands: broker (address), broker_name, topic, group.
 *
 * <p>pop: queue (-1), max (32), invisible_ms, poll_ms (0), init (0), order, attempt, exp, exp_type; gives messages with
 * their handles. pop.ack: handles, offsets by handle; one by one, or with "batch" in one request. pop.change: handle,
 * invisible_ms; gives the new handle. pop.notify: queue, poll_ms; gives has_msg.
 */
final class Pop {
    private static final Map<String, MQClientAPIExt> CLIENTS = new ConcurrentHashMap<>();
    private static final long TIMEOUT_MS = 60_000;

    private static MQClientAPIExt client(JSONObject a) {
        return CLIENTS.computeIfAbsent(a.getString("broker"), broker -> {
            NettyClientConfig netty = new NettyClientConfig();
            MQClientAPIExt client = new MQClientAPIExt(new ClientConfig(), netty, new ClientRemotingProcessor(null), null);
            client.start();
            return client;
        });
    }

    static JSONObject pop(JSONObject a) throws Exception {
        PopMessageRequestHeader header = new PopMessageRequestHeader();
        header.setConsumerGroup(a.getString("group"));
        header.setTopic(a.getString("topic"));
        header.setQueueId(a.getIntValue("queue", -1));
        header.setMaxMsgNums(a.getIntValue("max", 32));
        header.setInvisibleTime(a.getLongValue("invisible_ms", 60_000));
        header.setPollTime(a.getLongValue("poll_ms", 0));
        header.setBornTime(System.currentTimeMillis());
        header.setInitMode(a.getIntValue("init", 0));
        header.setExpType(a.getString("exp_type"));
        header.setExp(a.getString("exp"));
        header.setOrder(a.getBooleanValue("order", false));
        header.setAttemptId(a.getString("attempt"));
        PopResult result = client(a)
            .popMessageAsync(a.getString("broker"), a.getString("broker_name"), header, TIMEOUT_MS)
            .get(TIMEOUT_MS, TimeUnit.MILLISECONDS);
        JSONArray messages = new JSONArray();
        if (result.getMsgFoundList() != null) {
            for (MessageExt m : result.getMsgFoundList()) {
                JSONObject one = Consume.describe(m);
                one.put("body", new String(m.getBody(), StandardCharsets.UTF_8));
                one.put("handle", m.getProperty(MessageConst.PROPERTY_POP_CK));
                messages.add(one);
            }
        }
        JSONObject reply = new JSONObject();
        reply.put("status", result.getPopStatus().name());
        reply.put("rest", result.getRestNum());
        reply.put("messages", messages);
        return reply;
    }

    static JSONObject ack(JSONObject a) throws Exception {
        JSONArray statuses = new JSONArray();
        JSONArray handles = a.getJSONArray("handles");
        if (a.getBooleanValue("batch", false)) {
            AckResult result = client(a)
                .batchAckMessageAsync(a.getString("broker"), a.getString("topic"), a.getString("group"),
                    handles.toJavaList(String.class), TIMEOUT_MS)
                .get(TIMEOUT_MS, TimeUnit.MILLISECONDS);
            statuses.add(result.getStatus().name());
        } else {
            for (Object handle : handles) {
                String[] parts = ExtraInfoUtil.split((String) handle);
                AckMessageRequestHeader header = new AckMessageRequestHeader();
                header.setConsumerGroup(a.getString("group"));
                header.setTopic(ExtraInfoUtil.getRealTopic(parts, a.getString("topic"), a.getString("group")));
                header.setQueueId(ExtraInfoUtil.getQueueId(parts));
                header.setOffset(ExtraInfoUtil.getQueueOffset(parts));
                header.setExtraInfo((String) handle);
                AckResult result = client(a)
                    .ackMessageAsync(a.getString("broker"), header, TIMEOUT_MS)
                    .get(TIMEOUT_MS, TimeUnit.MILLISECONDS);
                statuses.add(result.getStatus().name());
            }
        }
        JSONObject reply = new JSONObject();
        reply.put("statuses", statuses);
        return reply;
    }

    static JSONObject change(JSONObject a) throws Exception {
        String handle = a.getString("handle");
        String[] parts = ExtraInfoUtil.split(handle);
        ChangeInvisibleTimeRequestHeader header = new ChangeInvisibleTimeRequestHeader();
        header.setConsumerGroup(a.getString("group"));
        header.setTopic(ExtraInfoUtil.getRealTopic(parts, a.getString("topic"), a.getString("group")));
        header.setQueueId(ExtraInfoUtil.getQueueId(parts));
        header.setOffset(ExtraInfoUtil.getQueueOffset(parts));
        header.setExtraInfo(handle);
        header.setInvisibleTime(a.getLongValue("invisible_ms"));
        AckResult result = client(a)
            .changeInvisibleTimeAsync(a.getString("broker"), a.getString("broker_name"), header, TIMEOUT_MS)
            .get(TIMEOUT_MS, TimeUnit.MILLISECONDS);
        JSONObject reply = new JSONObject();
        reply.put("status", result.getStatus().name());
        reply.put("handle", result.getExtraInfo());
        return reply;
    }

    static JSONObject notify(JSONObject a) throws Exception {
        NotificationRequestHeader header = new NotificationRequestHeader();
        header.setConsumerGroup(a.getString("group"));
        header.setTopic(a.getString("topic"));
        header.setQueueId(a.getIntValue("queue", -1));
        header.setPollTime(a.getLongValue("poll_ms", 0));
        header.setBornTime(System.currentTimeMillis());
        header.setOrder(a.getBooleanValue("order", false));
        NotifyResult result = client(a)
            .notificationWithPollingStats(a.getString("broker"), header, TIMEOUT_MS)
            .get(TIMEOUT_MS, TimeUnit.MILLISECONDS);
        JSONObject reply = new JSONObject();
        reply.put("has_msg", result.isHasMsg());
        reply.put("polling_full", result.isPollingFull());
        return reply;
    }

    private Pop() {
    }
}
