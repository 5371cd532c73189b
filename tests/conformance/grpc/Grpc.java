import static java.nio.charset.StandardCharsets.UTF_8;

import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.BooleanSupplier;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientException;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.FilterExpressionType;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.MessageBuilder;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;
import org.apache.rocketmq.client.apis.producer.SendReceipt;
import org.apache.rocketmq.client.apis.producer.Transaction;
import org.apache.rocketmq.client.apis.producer.TransactionResolution;

/**
 * The official gRPC client through Apache's proxy, in all its ways: Grpc ENDPOINT TOPIC. The topics are TOPIC with _normal, _fifo,
 * _delay and _transaction behind it, the groups the same with _group. Prints what came of it: a name, a tab, values
 * with commas between them.
 */
public final class Grpc {
    private static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();
    private static final long PATIENCE_MS = 50_000;

    private final ClientConfiguration configuration;
    private final String topic;
    private final List<String> checked = list();

    private Grpc(String endpoint, String topic) {
        this.topic = topic;
        configuration = ClientConfiguration.newBuilder().setEndpoints(endpoint)
            .setRequestTimeout(Duration.ofSeconds(10)).enableSsl(false).build();
    }

    public static void main(String[] args) throws Exception {
        new Grpc(args[0], args[1]).run();
        Runtime.getRuntime().halt(0); // its consumers take ten seconds each to close
    }

    private void run() throws Exception {
        Producer producer = PROVIDER.newProducerBuilder().setClientConfiguration(configuration)
            .setTopics(topic + "_normal", topic + "_fifo", topic + "_delay", topic + "_transaction")
            .setTransactionChecker(message -> {
                checked.add(body(message));
                return body(message).equals("commit later") ? TransactionResolution.COMMIT : TransactionResolution.ROLLBACK;
            }).build();
        List<String> committed = begin(producer);
        List<Callable<Void>> parts = List.of(
            () -> normal(producer), () -> fifo(producer), () -> delay(producer), () -> simple(producer));
        for (Future<Void> part : Executors.newFixedThreadPool(parts.size()).invokeAll(parts)) {
            part.get();
        }
        await(() -> committed.size() >= 2 && checked.contains("rollback later"));
        say("committed", sorted(committed));
        say("checked", checked.stream().distinct().sorted().collect(Collectors.toList()));
    }

    private List<String> begin(Producer producer) throws Exception {
        List<String> committed = list();
        push("transaction", new FilterExpression("*"), message -> {
            committed.add(body(message));
            return true;
        });
        for (String end : new String[] {"commit", "rollback", "commit later", "rollback later"}) {
            Transaction transaction = producer.beginTransaction();
            producer.send(message("transaction", end).build(), transaction);
            if (end.equals("commit")) {
                transaction.commit();
            } else if (end.equals("rollback")) {
                transaction.rollback();
            }
        }
        return committed;
    }

    private Void normal(Producer producer) throws Exception {
        List<String> all = list();
        List<String> some = list();
        push("normal", new FilterExpression("tag0 || tag1"), message -> {
            all.add(body(message) + " " + message.getDeliveryAttempt());
            return !body(message).equals("m3") || message.getDeliveryAttempt() > 1;
        });
        push("normal", "sql", new FilterExpression("number BETWEEN 2 AND 4", FilterExpressionType.SQL92), message -> {
            some.add(body(message) + " " + String.join("", message.getKeys()) + " " + message.getTag().orElse(""));
            return true;
        });
        List<CompletableFuture<SendReceipt>> sent = new ArrayList<>();
        for (int number = 0; number < 10; number++) {
            sent.add(producer.sendAsync(message("normal", "m" + number).setTag("tag" + number % 2).setKeys("key" + number)
                .addProperty("number", Integer.toString(number)).build()));
        }
        for (CompletableFuture<SendReceipt> receipt : sent) {
            receipt.get();
        }
        await(() -> all.size() >= 11 && some.size() >= 3);
        say("normal", sorted(all));
        say("sql", sorted(some));
        return null;
    }

    private Void fifo(Producer producer) throws Exception {
        List<String> all = list();
        push("fifo", new FilterExpression("*"), message -> all.add(body(message)));
        for (int number = 0; number < 20; number++) {
            producer.send(message("fifo", number % 2 + "-" + (10 + number)).setMessageGroup("g" + number % 2).build());
        }
        await(() -> all.size() >= 20);
        for (String group : new String[] {"0", "1"}) {
            say("fifo" + group, all.stream().filter(body -> body.startsWith(group)).collect(Collectors.toList()));
        }
        try {
            producer.send(message("normal", "x").setMessageGroup("g").build());
            say("fifo in normal", List.of("sent"));
        } catch (IllegalArgumentException | ClientException refused) {
            say("fifo in normal", List.of("refused"));
        }
        return null;
    }

    private Void delay(Producer producer) throws Exception {
        List<String> all = list();
        push("delay", new FilterExpression("*"), message -> {
            long late = System.currentTimeMillis() - message.getDeliveryTimestamp().orElse(0L);
            all.add(body(message) + (late < -50 ? " early" : late > 3_000 ? " late" : " in time"));
            return true;
        });
        long now = System.currentTimeMillis();
        SendReceipt receipt = producer.send(message("delay", "recalled").setDeliveryTimestamp(now + 3_000).build());
        producer.recallMessage(topic + "_delay", receipt.getRecallHandle());
        producer.send(message("delay", "delayed").setDeliveryTimestamp(now + 4_000).build());
        await(() -> !all.isEmpty());
        say("delay", all);
        return null;
    }

    private Void simple(Producer producer) throws Exception {
        SimpleConsumer consumer = PROVIDER.newSimpleConsumerBuilder().setClientConfiguration(configuration)
            .setConsumerGroup(topic + "_simple_group").setAwaitDuration(Duration.ofSeconds(2))
            .setSubscriptionExpressions(Collections.singletonMap(topic + "_normal", new FilterExpression("simple"))).build();
        for (int number = 0; number < 5; number++) {
            producer.send(message("normal", "s" + number).setTag("simple").build());
        }
        List<String> all = list();
        long end = System.currentTimeMillis() + PATIENCE_MS;
        while (all.size() < 6 && System.currentTimeMillis() < end) {
            for (MessageView message : consumer.receive(16, Duration.ofSeconds(30))) {
                all.add(body(message) + " " + message.getDeliveryAttempt());
                if (body(message).equals("s1") && message.getDeliveryAttempt() == 1) {
                    consumer.changeInvisibleDuration(message, Duration.ofSeconds(10));
                } else {
                    consumer.ack(message);
                }
            }
        }
        say("simple", sorted(all));
        return null;
    }

    private void push(String kind, FilterExpression filter, Function<MessageView, Boolean> listener) throws Exception {
        push(kind, "", filter, listener);
    }

    private void push(String kind, String more, FilterExpression filter, Function<MessageView, Boolean> listener)
        throws Exception {
        PROVIDER.newPushConsumerBuilder().setClientConfiguration(configuration)
            .setConsumerGroup(topic + "_" + kind + more + "_group")
            .setSubscriptionExpressions(Collections.singletonMap(topic + "_" + kind, filter))
            .setMessageListener(message -> listener.apply(message) ? ConsumeResult.SUCCESS : ConsumeResult.FAILURE).build();
    }

    private MessageBuilder message(String kind, String body) {
        return PROVIDER.newMessageBuilder().setTopic(topic + "_" + kind).setBody(body.getBytes(UTF_8));
    }

    private static String body(MessageView message) {
        ByteBuffer body = message.getBody();
        return UTF_8.decode(body).toString();
    }

    private static void await(BooleanSupplier done) throws InterruptedException {
        long end = System.currentTimeMillis() + PATIENCE_MS;
        while (!done.getAsBoolean() && System.currentTimeMillis() < end) {
            Thread.sleep(20);
        }
    }

    private static List<String> list() {
        return Collections.synchronizedList(new ArrayList<>());
    }

    private static List<String> sorted(List<String> values) {
        return new ArrayList<>(values).stream().sorted().collect(Collectors.toList());
    }

    private static void say(String name, Collection<String> values) {
        System.out.println(name + "\t" + String.join(",", values));
        System.out.flush();
    }
}
