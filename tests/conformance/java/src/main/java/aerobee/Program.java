package aerobee;

public final class Program {
    public static void main(String[] args) {
        System.out.println("{}");
    }
}
