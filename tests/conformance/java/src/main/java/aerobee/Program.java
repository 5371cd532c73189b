package aerobee;

import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import com.alibaba.fastjson2.JSONWriter;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.apache.rocketmq.client.impl.MQClientAPIImpl;
import org.apache.rocketmq.client.impl.MQClientManager;
import org.apache.rocketmq.client.impl.factory.MQClientInstance;
import org.apache.rocketmq.common.ServiceThread;
import org.apache.rocketmq.remoting.netty.NettyEvent;
import org.apache.rocketmq.remoting.netty.NettyEventType;
import org.apache.rocketmq.remoting.netty.NettyRemotingAbstract;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * Drives the official client for the conformance tests: one JVM serves many commands.
 *
 * <p>Standard input has a JSON object a line: "id", "do" (the command's name) and its arguments. Standard output has
 * one JSON object a line with the same "id" and either the results or "error". Commands run side by side, each on a
 * thread of its own, except "admin": mqadmin prints to System.out, so those run one at a time.
 */
public final class Program {
    /** A command: arguments in, results out. */
    interface Command {
        JSONObject run(JSONObject arguments) throws Exception;
    }

    private static final PrintStream OUT = System.out;
    private static final PrintStream ERR = System.err;
    private static final Object ADMIN = new Object();

    private static final Map<String, Command> COMMANDS = Map.ofEntries(
        Map.entry("produce", Produce::run),
        Map.entry("transaction", Produce::transaction),
        Map.entry("transactions.start", Transactions::start),
        Map.entry("transactions.state", Transactions::state),
        Map.entry("transactions.hush", Transactions::hush),
        Map.entry("transactions.quiet", Transactions::quiet),
        Map.entry("transactions.stop", Transactions::stop),
        Map.entry("request", Produce::request),
        Map.entry("recall", Produce::recall),
        Map.entry("consume.start", Consume::start),
        Map.entry("consume.state", Consume::state),
        Map.entry("consume.stop", Consume::stop),
        Map.entry("consume.cut", Consume::cut),
        Map.entry("litepull", Consume::litePull),
        Map.entry("pop", Pop::pop),
        Map.entry("pop.ack", Pop::ack),
        Map.entry("pop.change", Pop::change),
        Map.entry("pop.notify", Pop::notify),
        Map.entry("pull", Pull::run),
        Map.entry("query", Query::run),
        Map.entry("offsets", Query::offsets),
        Map.entry("filter", Filter::run),
        Map.entry("operate", Admin::run),
        Map.entry("admin", Program::admin));

    public static void main(String[] args) throws Exception {
        System.setOut(System.err);
        Thread hurry = new Thread(Program::hurry, "hurry");
        hurry.setDaemon(true);
        hurry.start();
        ExecutorService threads = Executors.newCachedThreadPool();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JSONObject arguments = JSON.parseObject(line);
            threads.execute(() -> serve(arguments));
        }
        Runtime.getRuntime().halt(0);
    }

    private static void serve(JSONObject arguments) {
        JSONObject reply;
        try {
            Command command = COMMANDS.get(arguments.getString("do"));
            if (command == null) {
                throw new IllegalArgumentException("no command " + arguments.getString("do"));
            }
            reply = command.run(arguments);
        } catch (Throwable error) {
            reply = new JSONObject();
            reply.put("error", describe(error));
        }
        reply.put("id", arguments.get("id"));
        String line = JSON.toJSONString(reply, JSONWriter.Feature.WriteNonStringKeyAsString);
        synchronized (OUT) {
            OUT.println(line);
            OUT.flush();
        }
    }

    /**
     * A client that shuts down waits for its event thread, which looks at its "stopped" only every three seconds: that is
     * all the time an mqadmin command takes. So those that are stopped are given an event that says nothing. (Not an
     * interrupt, and only those: an event thread also sends heartbeats, and closes its connection when it is interrupted.)
     */
    private static void hurry() {
        try {
            Field factories = open(MQClientManager.class, "factoryTable");
            Field executors = open(NettyRemotingAbstract.class, "nettyEventExecutor");
            while (true) {
                for (Object factory : ((Map<?, ?>) factories.get(MQClientManager.getInstance())).values()) {
                    MQClientAPIImpl api = ((MQClientInstance) factory).getMQClientAPIImpl();
                    NettyRemotingAbstract remoting = (NettyRemotingAbstract) api.getRemotingClient();
                    if (((ServiceThread) executors.get(remoting)).isStopped()) {
                        remoting.putNettyEvent(new NettyEvent(NettyEventType.CONNECT, "", null));
                    }
                }
                Thread.sleep(50);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } catch (ReflectiveOperationException | RuntimeException e) {
            ERR.println("the hurrying thread failed");
            e.printStackTrace(ERR);
            Runtime.getRuntime().halt(70);
        }
    }

    private static Field open(Class<?> of, String name) throws NoSuchFieldException {
        Field field = of.getDeclaredField(name);
        field.setAccessible(true);
        return field;
    }

    /** The error with its causes, one line. */
    static String describe(Throwable error) {
        StringBuilder text = new StringBuilder();
        for (Throwable e = error; e != null; e = e.getCause()) {
            text.append(text.length() == 0 ? "" : " <- ").append(e.getClass().getSimpleName()).append(": ").append(e.getMessage());
        }
        return text.toString();
    }

    /** mqadmin in this process: {"args": ["topicList", "-n", …]} gives {"output": what it printed}. */
    private static JSONObject admin(JSONObject arguments) {
        JSONArray args = arguments.getJSONArray("args");
        ByteArrayOutputStream printed = new ByteArrayOutputStream();
        synchronized (ADMIN) {
            PrintStream before = System.out;
            PrintStream beforeError = System.err;
            PrintStream capture = new PrintStream(printed, true, StandardCharsets.UTF_8);
            System.setOut(capture);
            System.setErr(capture);
            try {
                MQAdminStartup.main0(args.toArray(new String[0]), null);
            } finally {
                System.setOut(before);
                System.setErr(beforeError);
            }
        }
        JSONObject reply = new JSONObject();
        reply.put("output", printed.toString(StandardCharsets.UTF_8));
        return reply;
    }
}
