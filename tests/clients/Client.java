import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Posts a body to a URL three times with each version of HTTP, as Spring AI and LangChain4j do, and gets another URL. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(version).build();
            HttpRequest post = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(arguments[1]))
                .build();
            for (int number = 0; number < 3; number++) {
                HttpResponse<String> answer = client.send(post, HttpResponse.BodyHandlers.ofString());
                System.out.println(answer.statusCode() + " " + answer.body());
            }
            HttpRequest get = HttpRequest.newBuilder(URI.create(arguments[2])).build();
            System.out.println(client.send(get, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
