import java.lang.reflect.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.common.*;
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.common.topic.*;
import org.apache.rocketmq.remoting.protocol.*;
import org.apache.rocketmq.remoting.protocol.body.*;
import org.apache.rocketmq.remoting.protocol.admin.*;
import org.apache.rocketmq.remoting.protocol.heartbeat.*;
import org.apache.rocketmq.remoting.protocol.header.*;
import org.apache.rocketmq.remoting.protocol.route.*;
import org.apache.rocketmq.remoting.protocol.statictopic.*;
import org.apache.rocketmq.remoting.protocol.subscription.*;

/**
 * What the official library makes of its own classes, as data for tests. Arguments: the directory to write to.
 *
 * bodies.jsonl          a line "ClassName TAB json" for every body class, filled with values that can be told apart
 * headers.txt           a line "ClassName TAB wireName:type ..." for every header class; ! marks fields it calls required
 * codes.txt             a line "request|response|language|version TAB name TAB number"
 * registration.hex      a compressed registration of two topics and a static one
 * registration.json     the same uncompressed
 * messages.txt          a line "name TAB hex" for records, batches and ids; what they hold is in test_messages.py
 *
 * Class path: the jars of rocketmq-broker and rocketmq-tools 5.5.0 with all they depend on.
 */
public class PrintProtocol {
    static int next = 1;

    static Object value(Type type, int depth) throws Exception {
        if (type instanceof ParameterizedType) {
            ParameterizedType p = (ParameterizedType) type;
            Class<?> raw = (Class<?>) p.getRawType();
            Type[] args = p.getActualTypeArguments();
            if (Map.class.isAssignableFrom(raw)) {
                Map<Object, Object> map = raw == TreeMap.class ? new TreeMap<>() : raw.isAssignableFrom(HashMap.class) ? new HashMap<>() : new ConcurrentHashMap<>();
                map.put(value(args[0], depth + 1), value(args[1], depth + 1));
                if (args[0] == Integer.class || args[0] == Long.class) map.put(value(args[0], depth + 1), value(args[1], depth + 1));
                return map;
            }
            Collection<Object> all = raw == TreeSet.class ? new TreeSet<>() : raw.isAssignableFrom(HashSet.class) && Set.class.isAssignableFrom(raw) || raw == HashSet.class ? new HashSet<>() : new ArrayList<>();
            all.add(value(args[0], depth + 1));
            return all;
        }
        Class<?> c = (Class<?>) type;
        int n = next++;
        if (c == String.class) return "s" + n + (n % 5 == 0 ? "é\"\\/\n\u0001<" : "");
        if (c == int.class || c == Integer.class) return n;
        if (c == long.class || c == Long.class) return (long) n + (depth == 0 ? 4294967296L : 0);
        if (c == double.class) return n + 0.5;
        if (c == boolean.class || c == Boolean.class) return true;
        if (c == AtomicLong.class) return new AtomicLong(n);
        if (c == BitSet.class) { BitSet b = new BitSet(); b.set(1); b.set(9); return b; }
        if (c == Properties.class) { Properties p = new Properties(); p.setProperty("k" + n, "v" + n); return p; }
        if (c == Random.class) return null;
        if (c.isEnum()) return c.getEnumConstants()[0];
        if (c.isArray()) { Object a = Array.newInstance(c.getComponentType(), 2); for (int i = 0; i < 2; i++) Array.set(a, i, value(c.getComponentType(), depth + 1)); return a; }
        if (depth > 9) return null;
        Object made = null;
        for (Constructor<?> k : c.getDeclaredConstructors()) if (k.getParameterCount() == 0) { k.setAccessible(true); made = k.newInstance(); }
        if (made == null) {
            Constructor<?> k = c.getDeclaredConstructors()[0];
            k.setAccessible(true);
            Object[] args = new Object[k.getParameterCount()];
            for (int i = 0; i < args.length; i++) args[i] = value(k.getGenericParameterTypes()[i], depth + 1);
            return k.newInstance(args);
        }
        List<Class<?>> chain = new ArrayList<>();
        for (Class<?> k = c; k != Object.class; k = k.getSuperclass()) chain.add(0, k);
        for (Class<?> k : chain) {
            List<Field> fields = new ArrayList<>(Arrays.asList(k.getDeclaredFields()));
            for (Field f : fields) {
                if (Modifier.isStatic(f.getModifiers()) || Modifier.isFinal(f.getModifiers()) && !Map.class.isAssignableFrom(f.getType())) continue;
                if (Modifier.isTransient(f.getModifiers())) continue;
                f.setAccessible(true);
                if (Modifier.isFinal(f.getModifiers())) continue;
                Object v = value(f.getGenericType(), depth + 1);
                if (v != null) f.set(made, v);
            }
        }
        return made;
    }

    static final String BODIES = "ConsumeStats OffsetWrapper RollbackStats TopicOffset TopicStatsTable AclInfo BatchAck " +
        "BatchAckMessageRequestBody BrokerMemberGroup BrokerReplicasInfo BrokerStatsData BrokerStatsItem " +
        "CheckClientRequestBody ClusterInfo Connection ConsumeByWho ConsumeMessageDirectlyResult " +
        "ConsumeQueueData ConsumeStatsList ConsumeStatus ConsumerConnection " +
        "ConsumerOffsetSerializeWrapper ConsumerRunningInfo CreateTopicListRequestBody " +
        "ElectMasterResponseBody EpochEntryCache GetBrokerLiteInfoResponseBody " +
        "GetBrokerMemberGroupResponseBody GetConsumerStatusBody GetLiteClientInfoResponseBody " +
        "GetLiteGroupInfoResponseBody GetLiteTopicInfoResponseBody GetParentTopicInfoResponseBody " +
        "GroupList HARuntimeInfo KVTable LiteSubscriptionCtlRequestBody LockBatchRequestBody " +
        "LockBatchResponseBody MessageRequestModeSerializeWrapper PopProcessQueueInfo ProcessQueueInfo " +
        "ProducerConnection ProducerInfo ProducerTableInfo QueryAssignmentRequestBody " +
        "QueryAssignmentResponseBody QueryConsumeQueueResponseBody QueryConsumeTimeSpanBody " +
        "QueryCorrectionOffsetBody QuerySubscriptionResponseBody QueueTimeSpan RegisterBrokerBody " +
        "ResetOffsetBody ResetOffsetBodyForC SetMessageRequestModeRequestBody SubscriptionGroupList " +
        "SubscriptionGroupWrapper SyncStateSet TopicConfigAndMappingSerializeWrapper " +
        "TopicConfigSerializeWrapper TopicList TopicQueueMappingSerializeWrapper UnlockBatchRequestBody " +
        "UserInfo ConsumerData HeartbeatData ProducerData SubscriptionData BrokerData QueueData " +
        "TopicRouteData LogicQueueMappingItem TopicConfigAndQueueMapping TopicQueueMappingDetail " +
        "TopicQueueMappingInfo CustomizedRetryPolicy ExponentialRetryPolicy GroupForbidden " +
        "GroupRetryPolicy SimpleSubscriptionData SubscriptionGroupConfig TopicConfig " +
        "DataVersion MessageQueue GetConsumerListByGroupResponseBody MessageQueueAssignment " +
        "LiteSubscriptionDTO CheckRocksdbCqWriteResult";

    static Class<?> find(String name) {
        for (String p : new String[] {"remoting.protocol.body.", "remoting.protocol.admin.", "remoting.protocol.heartbeat.", "remoting.protocol.header.",
            "remoting.protocol.header.namesrv.", "remoting.protocol.header.controller.", "remoting.protocol.header.controller.admin.",
            "remoting.protocol.header.controller.register.", "remoting.protocol.route.", "remoting.protocol.statictopic.",
            "remoting.protocol.subscription.", "remoting.protocol.", "common.", "common.message.", "common.lite."}) {
            try {
                return Class.forName("org.apache.rocketmq." + p + name);
            } catch (ClassNotFoundException e) {
                continue;
            }
        }
        throw new IllegalArgumentException(name);
    }

    static void write(Path path, List<String> lines) throws Exception {
        Files.write(path, lines, StandardCharsets.UTF_8);
    }

    static void numbers(Class<?> c, String kind, List<String> lines) throws Exception {
        for (Field f : c.getFields()) {
            if (f.getType() == int.class) lines.add(kind + "\t" + f.getName() + "\t" + f.getInt(null));
        }
    }

    public static void main(String[] a) throws Exception {
        Path out = Paths.get(a[0]);
        List<String> lines = new ArrayList<>();
        for (String name : BODIES.split(" ")) {
            next = 1;
            lines.add(name + "\t" + RemotingSerializable.toJson(value(find(name), 0), false));
        }
        write(out.resolve("bodies.jsonl"), lines);

        lines = new ArrayList<>();
        for (String name : Files.readAllLines(out.resolve("header_classes.txt"))) {
            StringBuilder line = new StringBuilder(name).append("\t");
            for (Field f : find(name).getDeclaredFields()) {
                if (Modifier.isStatic(f.getModifiers())) continue;
                boolean required = f.getAnnotation(org.apache.rocketmq.remoting.annotation.CFNotNull.class) != null;
                line.append(f.getName()).append(":").append(f.getType().getSimpleName()).append(required ? "! " : " ");
            }
            lines.add(line.toString().trim());
        }
        write(out.resolve("headers.txt"), lines);

        lines = new ArrayList<>();
        numbers(RequestCode.class, "request", lines);
        numbers(ResponseCode.class, "response", lines);
        for (LanguageCode c : LanguageCode.values()) lines.add("language\t" + c.name() + "\t" + c.getCode());
        for (String v : new String[] {"V4_9_4", "V5_0_0", "V5_5_0"}) lines.add("version\t" + v + "\t" + MQVersion.Version.valueOf(v).ordinal());
        write(out.resolve("codes.txt"), lines);

        RegisterBrokerBody body = new RegisterBrokerBody();
        TopicConfigAndMappingSerializeWrapper wrapper = body.getTopicConfigSerializeWrapper();
        wrapper.getDataVersion().setTimestamp(1700000000000L);
        wrapper.getMappingDataVersion().setTimestamp(1700000000000L);
        wrapper.getDataVersion().setCounter(new AtomicLong(7));
        TopicConfig first = new TopicConfig("orders", 8, 4, 6);
        first.getAttributes().put("message.type", "NORMAL");
        first.getAttributes().put("a b", "c d");
        wrapper.getTopicConfigTable().put("orders", first);
        wrapper.getTopicConfigTable().put("%RETRY%g", new TopicConfig("%RETRY%g", 1, 1, 2));
        TopicQueueMappingInfo info = new TopicQueueMappingInfo("static", 4, "a", 3);
        info.getCurrIdMap().put(0, 1);
        info.getCurrIdMap().put(2, 3);
        wrapper.getTopicQueueMappingInfoMap().put("static", info);
        body.getFilterServerList().add("10.0.0.9:1");
        StringBuilder hex = new StringBuilder();
        for (byte b : body.encode(true)) hex.append(String.format("%02x", b));
        write(out.resolve("registration.hex"), Collections.singletonList(hex.toString()));
        write(out.resolve("registration.json"), Collections.singletonList(new String(body.encode(false), StandardCharsets.UTF_8)));

        write(out.resolve("messages.txt"), messages());
    }

    static String hex(byte[] data) {
        StringBuilder hex = new StringBuilder();
        for (byte b : data) hex.append(String.format("%02x", b));
        return hex.toString();
    }

    static byte[] body() {
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < 500; i++) text.append("line ").append(i).append(" é\n");
        return text.toString().getBytes(StandardCharsets.UTF_8);
    }

    static <M extends MessageExt> M fill(M message, boolean v6, int sysFlag) throws Exception {
        message.setTopic("orders");
        message.setBody(body());
        message.setBodyCRC(org.apache.rocketmq.common.UtilAll.crc32(body()));
        message.setQueueId(3);
        message.setFlag(42);
        message.setQueueOffset(123456789012L);
        message.setCommitLogOffset(9876543210L);
        message.setBornTimestamp(1700000000001L);
        message.setStoreTimestamp(1700000000002L);
        message.setReconsumeTimes(2);
        message.setPreparedTransactionOffset(77);
        message.setBornHost(new java.net.InetSocketAddress(java.net.InetAddress.getByName(v6 ? "2001:db8::1" : "10.1.2.3"), 50001));
        message.setStoreHost(new java.net.InetSocketAddress(java.net.InetAddress.getByName(v6 ? "2001:db8::2" : "10.1.2.4"), 10911));
        message.setSysFlag(sysFlag | (v6 ? 16 | 32 : 0));
        message.setTags("new");
        message.setKeys("k1 k2");
        message.putUserProperty("größe", "1 €");
        MessageAccessor.putProperty(message, "UNIQ_KEY", "0A010203ABCD18B4AAC20123456789AB");
        return message;
    }

    static List<String> messages() throws Exception {
        List<String> lines = new ArrayList<>();
        lines.add("plain\t" + hex(MessageDecoder.encode(fill(new MessageExt(), false, 0), false)));
        lines.add("ipv6\t" + hex(MessageDecoder.encode(fill(new MessageExt(), true, 0), false)));
        lines.add("zlib\t" + hex(MessageDecoder.encode(fill(new MessageExt(), false, 1 | 0x300), true)));
        lines.add("zlib_unnamed\t" + hex(MessageDecoder.encode(fill(new MessageExt(), false, 1), true)));
        lines.add("lz4\t" + hex(MessageDecoder.encode(fill(new MessageExt(), false, 1 | 0x100), true)));
        lines.add("zstd\t" + hex(MessageDecoder.encode(fill(new MessageExt(), false, 1 | 0x200), true)));

        MessageExtBrokerInner inner = fill(new MessageExtBrokerInner(), false, 0);
        StringBuilder name = new StringBuilder();
        for (int i = 0; i < 20; i++) name.append("long_topic_");
        inner.setTopic(name.toString());
        inner.setVersion(MessageVersion.MESSAGE_VERSION_V2);
        inner.setPropertiesString(MessageDecoder.messageProperties2String(inner.getProperties()));
        org.apache.rocketmq.store.MessageExtEncoder encoder = new org.apache.rocketmq.store.MessageExtEncoder(
            1 << 20, new org.apache.rocketmq.store.config.MessageStoreConfig());
        encoder.encode(inner);
        java.nio.ByteBuffer encoded = encoder.getEncoderBuffer();
        byte[] record = new byte[encoded.getInt(0)];
        encoded.get(0, record);
        lines.add("version2\t" + hex(record));

        List<Message> batch = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            Message message = new Message("orders", "tag" + i, "key" + i, ("body " + i).getBytes(StandardCharsets.UTF_8));
            message.setFlag(i);
            batch.add(message);
        }
        lines.add("batch\t" + hex(MessageDecoder.encodeMessages(batch)));
        lines.add("id\t" + MessageDecoder.createMessageId(fill(new MessageExt(), false, 0).getStoreHost(), 9876543210L));
        lines.add("id_ipv6\t" + MessageDecoder.createMessageId(fill(new MessageExt(), true, 0).getStoreHost(), 9876543210L));
        for (String text : new String[] {"", "a", "TagA", "größe", "\ud83d\ude00", "polygenelubricants"}) {
            lines.add("hash " + text + "\t" + text.hashCode());
        }
        return lines;
    }
}
