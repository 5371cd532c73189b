package aerobee;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * What consumers began to work on, in the order in which they did, in one file that several processes append to: a batch
 * is one write, so nothing gets in between, and a killed process loses nothing.
 *
 * <p>Sixteen bytes a message, big-endian: queue, the member's number, the queue's offset, the message's "seq".
 */
final class Ledger {
    private final FileChannel file;
    private final int member;

    Ledger(String path, int member) throws IOException {
        file = FileChannel.open(Path.of(path), StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        this.member = member;
    }

    void note(List<MessageExt> messages) {
        ByteBuffer rows = ByteBuffer.allocate(16 * messages.size());
        for (MessageExt m : messages) {
            rows.putInt(m.getQueueId()).putInt(member).putInt((int) m.getQueueOffset());
            rows.putInt(Integer.parseInt(m.getUserProperty("seq")));
        }
        try {
            file.write(rows.flip());
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }
}
