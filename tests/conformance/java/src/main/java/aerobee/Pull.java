package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** One queue through the official pull consumer, which needs no route of the queue's own topic. */
final class Pull {
    /**
     * Arguments: namesrv, group, broker (name), topic, queue; route (a topic whose route leads to the broker). Optional: offset
     * (pull there) with max, tags, wait (hold the pull until there is a message); commit (offset of the group), committed (ask
     * for it), at_ms (search). Min and max of the queue are always given.
     */
    static JSONObject run(JSONObject a) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(a.getString("group"));
        consumer.setNamesrvAddr(a.getString("namesrv"));
        consumer.setInstanceName("r" + System.nanoTime());
        consumer.start();
        try {
            String route = a.getString("route") == null ? a.getString("topic") : a.getString("route");
            consumer.getDefaultMQPullConsumerImpl().getRebalanceImpl().getmQClientFactory().updateTopicRouteInfoFromNameServer(route);
            MessageQueue queue = new MessageQueue(a.getString("topic"), a.getString("broker"), a.getIntValue("queue"));
            JSONObject reply = new JSONObject();
            if (a.containsKey("offset")) {
                String tags = a.getString("tags") == null ? "*" : a.getString("tags");
                long offset = a.getLongValue("offset");
                int max = a.getIntValue("max", 32);
                PullResult result = a.getBooleanValue("wait")
                    ? consumer.pullBlockIfNotFound(queue, tags, offset, max)
                    : consumer.pull(queue, tags, offset, max);
                reply.put("status", result.getPullStatus().toString());
                reply.put("next", result.getNextBeginOffset());
                JSONArray messages = new JSONArray();
                if (result.getMsgFoundList() != null) {
                    for (MessageExt message : result.getMsgFoundList()) {
                        messages.add(Consume.describe(message));
                    }
                }
                reply.put("messages", messages);
            }
            if (a.containsKey("commit")) {
                consumer.getOffsetStore().updateConsumeOffsetToBroker(queue, a.getLongValue("commit"), false);
            }
            if (a.containsKey("committed")) {
                reply.put("committed", consumer.fetchConsumeOffset(queue, true));
            }
            if (a.containsKey("at_ms")) {
                reply.put("at", consumer.searchOffset(queue, a.getLongValue("at_ms")));
            }
            reply.put("min", consumer.minOffset(queue));
            reply.put("max", consumer.maxOffset(queue));
            return reply;
        } finally {
            consumer.shutdown();
        }
    }
}
