// Writes header_frames.txt: frames as Apache RocketMQ's own classes write them, one a line: encoding, case, hex.
// Run: java -cp '<directory of rocketmq-remoting 5.5.0 and what it needs>/*' Headers.java | grep -E '^(JSON|ROCKETMQ) ' > header_frames.txt

import java.nio.ByteBuffer;
import java.util.HashMap;
import org.apache.rocketmq.remoting.protocol.LanguageCode;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.remoting.protocol.SerializeType;

public class Headers {
    static String hex(ByteBuffer bytes) {
        StringBuilder out = new StringBuilder();
        while (bytes.hasRemaining()) {
            out.append(String.format("%02x", bytes.get()));
        }
        return out.toString();
    }

    static RemotingCommand command(SerializeType encoding, String which) {
        RemotingCommand command = RemotingCommand.createRequestCommand(10, null);
        command.setSerializeTypeCurrentRPC(encoding);
        command.setOpaque(7);
        command.setVersion(513);
        switch (which) {
            case "bare":
                break;
            case "oneway":
                command.markOnewayRPC();
                command.setLanguage(LanguageCode.GO);
                command.setVersion(0);
                break;
            case "remark":
                command.markResponseType();
                command.setRemark("r\u00e9mark \"q\" \\ \n\t\b\f\r\u0001 \ud83d\ude00 / <>'&");
                break;
            case "fields":
                command.setOpaque(-5);
                command.setCode(32767);
                command.setLanguage(LanguageCode.NODE_JS);
                command.setExtFields(new HashMap<>());
                command.addExtField("i", "KEYS\u0001a b\u0002TAGS\u0001t\u0002");
                command.addExtField("\u00fc", "\u0000\u0007\u001f\u007f\u0080\u2028\u2029\uffff");
                command.setBody(new byte[] {0, 1, -1});
                break;
            default:
                throw new IllegalArgumentException(which);
        }
        return command;
    }

    public static void main(String[] args) {
        for (SerializeType encoding : SerializeType.values()) {
            for (String which : new String[] {"bare", "oneway", "remark", "fields"}) {
                System.out.println(encoding + " " + which + " " + hex(command(encoding, which).encode()));
            }
        }
        System.exit(0);
    }
}
