package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** Questions asked of the broker through the official admin client: messages by id, key and time, offsets of queues. */
final class Query {
    private interface Question {
        JSONObject ask(DefaultMQAdminExt admin) throws Exception;
    }

    private static JSONObject with(JSONObject a, Question question) throws Exception {
        DefaultMQAdminExt admin = new DefaultMQAdminExt();
        admin.setNamesrvAddr(a.getString("namesrv"));
        admin.setInstanceName("q" + System.nanoTime());
        admin.start();
        try {
            return question.ask(admin);
        } finally {
            admin.shutdown();
        }
    }

    /** Arguments: topic; one of msg_ids (list; offset ids or unique ids), key; begin_ms, end_ms, max. */
    static JSONObject run(JSONObject a) throws Exception {
        return with(a, admin -> {
            List<MessageExt> found = new ArrayList<>();
            JSONArray missing = new JSONArray();
            JSONArray ids = a.getJSONArray("msg_ids");
            if (ids != null) {
                for (int i = 0; i < ids.size(); i++) {
                    try {
                        found.add(admin.viewMessage(a.getString("topic"), ids.getString(i)));
                    } catch (Exception error) {
                        missing.add(ids.getString(i) + " " + Program.describe(error));
                    }
                }
            } else {
                QueryResult result = admin.queryMessage(a.getString("topic"), a.getString("key"), a.getIntValue("max", 32),
                    a.getLongValue("begin_ms", 0), a.getLongValue("end_ms", Long.MAX_VALUE));
                found.addAll(result.getMessageList());
            }
            JSONArray messages = new JSONArray();
            found.forEach(message -> messages.add(Consume.describe(message)));
            JSONObject reply = new JSONObject();
            reply.put("messages", messages);
            reply.put("missing", missing);
            return reply;
        });
    }

    /** Arguments: topic; optional at_ms. Gives min, max, earliest store time and offset at a time for each queue. */
    static JSONObject offsets(JSONObject a) throws Exception {
        return with(a, admin -> {
            List<MessageQueue> queues = new ArrayList<>();
            admin.examineTopicRouteInfo(a.getString("topic")).getQueueDatas().forEach(data -> {
                for (int id = 0; id < data.getReadQueueNums(); id++) {
                    queues.add(new MessageQueue(a.getString("topic"), data.getBrokerName(), id));
                }
            });
            queues.sort(Comparator.naturalOrder());
            JSONArray rows = new JSONArray();
            for (MessageQueue queue : queues) {
                JSONObject row = new JSONObject();
                row.put("queue", queue.getQueueId());
                row.put("min", admin.minOffset(queue));
                row.put("max", admin.maxOffset(queue));
                row.put("earliest", admin.earliestMsgStoreTime(queue));
                if (a.containsKey("at_ms")) {
                    row.put("at", admin.searchOffset(queue, a.getLongValue("at_ms")));
                }
                rows.add(row);
            }
            JSONObject reply = new JSONObject();
            reply.put("rows", rows);
            return reply;
        });
    }
}
