package aerobee;

import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.filter.FilterFactory;
import org.apache.rocketmq.filter.expression.EvaluationContext;
import org.apache.rocketmq.filter.expression.Expression;

/**
 * What Apache's own filter classes say: "expressions" (SQL92) on "properties" (texts as messages carry them).
 *
 * <p>For each expression null (refused), or one character a text: 1 where a broker would deliver the message.
 */
final class Filter {
    static JSONObject run(JSONObject a) {
        List<Map<String, String>> sets = new ArrayList<>();
        JSONArray texts = a.getJSONArray("properties");
        for (int i = 0; i < texts.size(); i++) {
            sets.add(MessageDecoder.string2messageProperties(texts.getString(i)));
        }
        JSONArray verdicts = new JSONArray();
        JSONArray expressions = a.getJSONArray("expressions");
        for (int i = 0; i < expressions.size(); i++) {
            verdicts.add(verdict(expressions.getString(i), sets));
        }
        JSONObject reply = new JSONObject();
        reply.put("verdicts", verdicts);
        return reply;
    }

    private static String verdict(String text, List<Map<String, String>> sets) {
        Expression expression;
        try {
            expression = FilterFactory.INSTANCE.get("SQL92").compile(text);
        } catch (Throwable refused) {
            return null;
        }
        StringBuilder verdict = new StringBuilder();
        for (Map<String, String> set : sets) {
            boolean matches;
            try {
                matches = Boolean.TRUE.equals(expression.evaluate(new Properties(set)));
            } catch (Throwable nonsense) {
                matches = false;
            }
            verdict.append(matches ? '1' : '0');
        }
        return verdict.toString();
    }

    private record Properties(Map<String, String> set) implements EvaluationContext {
        @Override
        public Object get(String name) {
            return set.get(name);
        }

        @Override
        public Map<String, Object> keyValues() {
            return new HashMap<>(set);
        }
    }
}
