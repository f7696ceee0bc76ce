use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

/// An EC2 API that gives these answers in order, the last one again and again, and keeps what it was asked.
struct Api {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    calls: Arc<AtomicUsize>,
}

async fn api(answers: Vec<(u16, String)>) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, calls) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (asked_there, calls_there) = (asked.clone(), calls.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            loop {
                let mut part = [0; 4096];
                let n = stream.read(&mut part).await.unwrap_or(0);
                request.extend_from_slice(&part[..n]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .lines()
                    .find_map(|l| l.to_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse().ok()))
                    .unwrap_or(0);
                if body.len() >= length || n == 0 {
                    asked_there.lock().unwrap().push(body.to_owned());
                    break;
                }
            }
            let call = calls_there.fetch_add(1, Ordering::SeqCst);
            let (status, body) = answers.get(call).or(answers.last()).unwrap();
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: text/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Api { url, asked, calls }
}

async fn config(url: &str, attempts: u32) -> SdkConfig {
    let retry = RetryConfig::standard()
        .with_max_attempts(attempts)
        .with_initial_backoff(Duration::from_millis(1))
        .with_max_backoff(Duration::from_millis(5));
    aws_config::defaults(BehaviorVersion::latest())
        .credentials_provider(aws_sdk_ec2::config::Credentials::new("a", "b", None, None, "test"))
        .region(Region::new("us-west-2"))
        .endpoint_url(url)
        .retry_config(retry)
        .load()
        .await
}

fn query() -> Query {
    Query {
        account: Account { profile: Some("prod".into()), ..Account::default() },
        regions: vec!["us-west-2".into()],
        include: vec![vec![("tag:Role".to_owned(), vec!["web".to_owned(), "db".to_owned()])]],
        strict_permissions: true,
        ..Query::default()
    }
}

fn page(ids: &[&str], next: &str) -> (u16, String) {
    let instances: Vec<String> = ids
        .iter()
        .map(|id| {
            format!(
                "<item><instanceId>{id}</instanceId><privateIpAddress>10.0.0.1</privateIpAddress>\
                 <launchTime>2026-01-02T03:04:05.000Z</launchTime>\
                 <placement><availabilityZone>us-west-2a</availabilityZone></placement>\
                 <tagSet><item><key>Name</key><value>{id}-name</value></item></tagSet></item>"
            )
        })
        .collect();
    let instances = instances.concat();
    let next = if next.is_empty() { String::new() } else { format!("<nextToken>{next}</nextToken>") };
    (
        200,
        format!(
            "<DescribeInstancesResponse><reservationSet><item><reservationId>r-1</reservationId><ownerId>1</ownerId>\
             <instancesSet>{instances}</instancesSet></item></reservationSet>{next}</DescribeInstancesResponse>"
        ),
    )
}

fn refusal(status: u16, code: &str, message: &str) -> (u16, String) {
    (
        status,
        format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>1</RequestID></Response>"
        ),
    )
}

#[tokio::test]
async fn pages_are_followed_and_throttled_calls_are_repeated() {
    let throttled = refusal(503, "RequestLimitExceeded", "Request limit exceeded.");
    let api = api(vec![throttled.clone(), page(&["i-2", "i-3"], "more"), throttled, page(&["i-1"], "")]).await;
    let found = discover_with(&config(&api.url, 4).await, &query()).await.unwrap();
    let ids: Vec<&str> = found.instances.iter().map(|i| i.id.as_str()).collect();
    assert_eq!(ids, ["i-1", "i-2", "i-3"]);
    assert_eq!(api.calls.load(Ordering::SeqCst), 4);
    let first = &found.instances[0];
    assert_eq!((first.tag("Name"), first.text("private_ip_address")), (Some("i-1-name"), Some("10.0.0.1")));
    assert_eq!(first.attributes["placement"]["region"], "us-west-2");
    assert_eq!(first.attributes["launch_time"], "2026-01-02T03:04:05+00:00");
    assert_eq!(first.attributes["owner_id"], "1");
    let asked = api.asked.lock().unwrap();
    assert!(asked[0].contains("Filter.1.Name=tag%3ARole&Filter.1.Value.1=web&Filter.1.Value.2=db"), "{}", asked[0]);
    assert!(asked[0].contains("Filter.2.Name=instance-state-name"), "{}", asked[0]);
    assert!(asked[3].contains("NextToken=more"), "{}", asked[3]);
}

#[tokio::test]
async fn what_is_excluded_is_left_out() {
    let api = api(vec![page(&["i-1", "i-2"], "")]).await;
    let mut query = query();
    query.exclude = vec![vec![("tag:Role".to_owned(), vec!["web".to_owned()])]];
    // The same answer to both questions: all of it is excluded.
    let found = discover_with(&config(&api.url, 1).await, &query).await.unwrap();
    assert_eq!(found.instances, []);
    assert_eq!(api.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn errors_name_profile_call_and_permission() {
    let denial = "You are not authorized to perform this operation. User: arn:aws:iam::1:user/x is not authorized to \
                  perform: ec2:DescribeInstances because no identity-based policy allows the action";
    let cases = [
        (
            refusal(403, "UnauthorizedOperation", denial),
            format!("the permission ec2:DescribeInstances is missing for DescribeInstances in us-west-2 (profile 'prod'): {denial}"),
            Some("allow ec2:DescribeInstances in a policy of that user or role"),
        ),
        (
            refusal(400, "RequestExpired", "Request has expired."),
            "AWS refused the credentials at DescribeInstances in us-west-2 (profile 'prod'): RequestExpired: Request has expired.".into(),
            Some("the token has expired: log in again (aws sso login), or renew the session"),
        ),
        (
            refusal(401, "AuthFailure", "AWS was not able to validate the provided access credentials"),
            "AWS refused the credentials at DescribeInstances in us-west-2 (profile 'prod'): AuthFailure: AWS was not able to validate the provided access credentials".into(),
            Some("look at the keys, and at this machine's clock"),
        ),
        (
            refusal(503, "RequestLimitExceeded", "Request limit exceeded."),
            "AWS throttles DescribeInstances in us-west-2 (profile 'prod'); gave up after 8 attempts".into(),
            Some("ask fewer regions, or turn the cache on (cache: true)"),
        ),
        (
            refusal(400, "InvalidParameterValue", "The filter 'x' is invalid"),
            "DescribeInstances in us-west-2 failed (profile 'prod'): InvalidParameterValue: The filter 'x' is invalid".into(),
            Some("look at 'filters' in the file"),
        ),
    ];
    for (answer, message, hint) in cases {
        let api = api(vec![answer]).await;
        let error = discover_with(&config(&api.url, 2).await, &query()).await.unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.hint().as_deref(), hint);
    }
}

#[tokio::test]
async fn a_region_that_may_not_be_asked_can_be_left_out() {
    let api = api(vec![refusal(403, "UnauthorizedOperation", "no")]).await;
    let lenient = Query { strict_permissions: false, ..query() };
    let found = discover_with(&config(&api.url, 1).await, &lenient).await.unwrap();
    assert_eq!(found.instances, []);
    assert!(found.warnings[0].starts_with("us-west-2 is left out: the permission ec2:DescribeInstances is missing"));
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_told() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    drop(silent);
    let error = discover_with(&config(&url, 2).await, &query()).await.unwrap_err();
    assert!(matches!(&error, Ec2Error::Unreachable { message, .. } if message.contains("refused")), "{error:?}");
}

#[test]
fn the_missing_permission_is_read_from_the_text() {
    assert_eq!(permission_in("is not authorized to perform: sts:AssumeRole.").as_deref(), Some("sts:AssumeRole"));
    assert_eq!(permission_in("nothing"), None);
}
