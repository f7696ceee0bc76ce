//! Against the real API server, on loopback. Its environment is the one of `lab prepare`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use indexmap::IndexMap;

use super::*;
use crate::cloud::{
    self, Cloud, CloudConfig, Endpoints, Hypervisor, Instance, InstanceSpec, KeySpec, Owner, State as InstanceState,
};

/// Remembers what it was told; refuses an image named `broken`.
#[derive(Default)]
struct Listener {
    told: Mutex<Vec<Instance>>,
    /// States of the instance named `one`, each once.
    history: Mutex<Vec<InstanceState>>,
}

impl Hypervisor for Listener {
    async fn reconcile(&self, instances: &[Instance]) -> anyhow::Result<()> {
        // A caller that gets its answer too early would not see the change.
        tokio::time::sleep(Duration::from_millis(30)).await;
        *self.told.lock().unwrap() = instances.to_vec();
        let mut history = self.history.lock().unwrap();
        history.extend(instances.iter().find(|instance| instance.name == "one").map(|instance| instance.state));
        history.dedup();
        drop(history);
        anyhow::ensure!(
            !instances.iter().any(|instance| instance.image == "broken" && instance.state == InstanceState::Running),
            "no such base: broken"
        );
        Ok(())
    }

    fn console(&self, id: &str) -> anyhow::Result<String> {
        Ok(format!("{}console of {id} <&>\n", "x".repeat(CONSOLE_LIMIT_BYTES)))
    }
}

impl Listener {
    fn named(&self, name: &str) -> Option<Instance> {
        self.told.lock().unwrap().iter().find(|instance| instance.name == name).cloned()
    }
}

/// An address of loopback that no other test has, so that fixed ports on it are free.
fn endpoints() -> Endpoints {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let mine = Ipv4Addr::new(127, 64 | (high & 63), low, COUNT.fetch_add(1, Ordering::SeqCst));
    let at = |port| SocketAddr::from((mine, port));
    // Port 80 is root's.
    Endpoints { moto: at(5001), imds: at(8169), ..Endpoints::on(mine) }
}

fn spec(name: &str, zone: &str) -> InstanceSpec {
    InstanceSpec {
        name: name.to_owned(),
        instance_type: "t3.micro".to_owned(),
        image: "debian-12".to_owned(),
        zone: zone.to_owned(),
        key: Some("kraken".to_owned()),
        tags: [("Cluster".to_owned(), "kraken & co".to_owned())].into_iter().collect::<IndexMap<_, _>>(),
        user_data: Some("#!/bin/sh\necho \"grüß\" > /x\n".to_owned()),
        address: None,
    }
}

struct Running {
    cloud: Cloud,
    listener: Arc<Listener>,
    api: moto::Api,
    endpoints: Endpoints,
    server: std::path::PathBuf,
    folder: tempfile::TempDir,
}

async fn running(instances: Vec<InstanceSpec>) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let me = Owner {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        home: folder.path().to_owned(),
    };
    let cache = crate::paths::cache_dir(&crate::paths::owner().unwrap()).unwrap();
    let server = crate::serve::moto(&cache, &crate::paths::owner().unwrap()).await.unwrap();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let endpoints = endpoints();
    let listener = Arc::new(Listener::default());
    let config = CloudConfig {
        name: "test".to_owned(),
        dir: folder.path().join("lab"),
        endpoints: endpoints.clone(),
        subnet: "10.77.9.0/24".parse().unwrap(),
        region: "us-west-2".to_owned(),
        keys: vec![KeySpec { name: "kraken".to_owned() }],
        instances,
        owner: me,
        prepared: crate::serve::Prepared {
            moto: server.clone(),
            programs: Vec::new(),
            mirror: empty.clone(),
            apt: empty,
        },
        interval: Duration::from_millis(200),
    };
    let cloud = cloud::start(config, Arc::clone(&listener)).await.unwrap();
    // Through the proxy, as everybody else.
    let api = moto::Api::new(endpoints.aws).unwrap();
    Running { cloud, listener, api, endpoints, server, folder }
}

impl Running {
    async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Element, moto::ApiError> {
        self.api.ec2("us-west-2", action, parameters).await
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.endpoints.aws)
    }

    /// The interpreter of the API server's environment: it has the SDK.
    fn python(&self) -> std::path::PathBuf {
        self.server.with_file_name("python")
    }

    fn private_key(&self) -> std::path::PathBuf {
        self.folder.path().join("lab/keys/kraken")
    }
}

fn public_line(private: &Path) -> String {
    std::fs::read_to_string(private.with_extension("pub")).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_follow_every_call_before_it_is_answered() {
    let lab = running(vec![spec("one", "us-west-2a"), spec("far", "eu-central-1b")]).await;
    let one = lab.listener.named("one").unwrap();
    assert_eq!(
        (one.address, one.zone.as_str(), one.image.as_str()),
        (Ipv4Addr::new(10, 77, 9, 138), "us-west-2a", "debian-12")
    );
    assert_eq!(one.tags.get("Cluster").map(String::as_str), Some("kraken & co"));
    assert_eq!(one.public_keys, [public_line(&lab.private_key())]);
    assert_eq!(one.user_data.as_deref(), Some("#!/bin/sh\necho \"grüß\" > /x\n".as_bytes()));
    assert_eq!(lab.listener.named("far").unwrap().region, "eu-central-1");

    lab.call("StopInstances", &[("InstanceId.1", &one.id)]).await.unwrap();
    assert_eq!(lab.listener.named("one").unwrap().state, InstanceState::Stopped);
    assert_eq!(
        lab.cloud.shared.by_address(one.address).unwrap().id,
        one.id,
        "a host that shuts down may ask for metadata"
    );
    lab.call("StartInstances", &[("InstanceId.1", &one.id)]).await.unwrap();
    assert_eq!(lab.listener.named("one").unwrap().state, InstanceState::Running);
    lab.call("RebootInstances", &[("InstanceId.1", &one.id)]).await.unwrap();
    use InstanceState::{Running as On, Stopped as Off};
    assert_eq!(*lab.listener.history.lock().unwrap(), [On, Off, On, Off, On]);
    lab.call("CreateTags", &[("ResourceId.1", &one.id), ("Tag.1.Key", "Name"), ("Tag.1.Value", "uno")]).await.unwrap();
    assert_eq!(lab.listener.named("uno").unwrap().id, one.id);
    lab.call("TerminateInstances", &[("InstanceId.1", &one.id)]).await.unwrap();
    let gone = lab.cloud.instances().iter().find(|instance| instance.id == one.id).map(|instance| instance.state);
    assert_eq!(gone, Some(InstanceState::Terminated));
    let unknown = lab.call("StopInstances", &[("InstanceId.1", "i-0123456789abcdef0")]).await.unwrap_err();
    assert!(unknown.to_string().contains("InvalidInstanceID.NotFound"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_is_the_hosts_own() {
    let lab = running(vec![spec("one", "us-west-2a")]).await;
    let id = lab.listener.named("one").unwrap().id;
    let answer = lab.call("GetConsoleOutput", &[("InstanceId", &id)]).await.unwrap();
    let output = base64::engine::general_purpose::STANDARD.decode(answer.at(&["output"]).unwrap()).unwrap();
    assert_eq!(output.len(), CONSOLE_LIMIT_BYTES);
    assert!(String::from_utf8(output).unwrap().ends_with(&format!("xconsole of {id} <&>\n")));
    let unknown = lab.call("GetConsoleOutput", &[("InstanceId", "i-0123456789abcdef0")]).await.unwrap_err();
    assert!(unknown.to_string().contains("InvalidInstanceID.NotFound"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_follow_is_an_error_of_the_call() {
    let lab = running(vec![spec("one", "us-west-2a")]).await;
    let subnets = lab.call("DescribeSubnets", &[]).await.unwrap();
    let subnet = subnets.find("subnetId").unwrap().text.clone();
    let image = lab.call("RegisterImage", &[("Name", "broken")]).await.unwrap();
    let image = image.at(&["imageId"]).unwrap().to_owned();
    let asked = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1"), ("SubnetId", &subnet)];
    let error = lab.call("RunInstances", &asked).await.unwrap_err().to_string();
    assert!(error.contains("LabHostFailed: hosts cannot follow the EC2 API: no such base: broken"), "{error}");
    let reads = lab.call("DescribeInstances", &[]).await;
    assert!(reads.is_ok(), "reading goes on");
    let id = lab.listener.named("one").unwrap().id;
    lab.call("CreateTags", &[("ResourceId.1", &id), ("Tag.1.Key", "a"), ("Tag.1.Value", "b")])
        .await
        .expect("others are not to blame");
    assert_eq!(lab.listener.named("one").unwrap().tags["a"], "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_subnet_no_instance_starts() {
    let lab = running(vec![spec("one", "us-west-2a")]).await;
    let vpcs = lab.call("DescribeVpcs", &[]).await.unwrap();
    let ranges: Vec<_> = vpcs.items("vpcSet").filter_map(|vpc| vpc.at(&["cidrBlock"])).collect();
    assert_eq!(ranges, ["10.77.9.0/24"]);
    let refused = lab.call("RunInstances", &[("ImageId", "ami-12345678"), ("MinCount", "1"), ("MaxCount", "1")]).await;
    assert!(refused.is_err());
    let up: Vec<_> = lab
        .cloud
        .instances()
        .iter()
        .filter(|instance| instance.state == InstanceState::Running)
        .map(|i| i.name.clone())
        .collect();
    assert_eq!(up, ["one"]);
    let described = lab.call("DescribeInstances", &[]).await.unwrap();
    assert_eq!(described.find("privateIpAddress").unwrap().text, "10.77.9.10");
    assert!(
        described.find("publicIp").is_none() && described.at(&["ipAddress"]).is_none(),
        "public addresses would lead nowhere"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_powers_itself_off_is_stopped_in_the_api() {
    let mut lab = running(vec![spec("one", "us-west-2a")]).await;
    let id = lab.listener.named("one").unwrap().id;
    lab.cloud.powered_off(&id).await.unwrap();
    let answer = lab.call("DescribeInstances", &[]).await.unwrap();
    assert_eq!(answer.find("instanceState").unwrap().at(&["name"]), Some("stopped"));
    assert_eq!(lab.listener.named("one").unwrap().state, InstanceState::Stopped);
    assert!(lab.cloud.powered_off("i-none").await.is_err());
    lab.cloud.check().unwrap();
    lab.cloud.stop().await.unwrap();
    assert!(lab.api.ec2("us-west-2", "DescribeInstances", &[]).await.is_err());
}

/// What the other services answer passes through as it is; groups of Auto Scaling start and replace instances.
const SCRIPT: &str = r#"
import boto3, sys
region, subnet = "us-west-2", sys.argv[1]
s3 = boto3.client("s3", region)
s3.create_bucket(Bucket="lab", CreateBucketConfiguration={"LocationConstraint": region})
body = bytes(range(256)) * 5000
s3.put_object(Bucket="lab", Key="a b/ü", Body=body)
assert s3.get_object(Bucket="lab", Key="a b/ü")["Body"].read() == body
assert s3.head_object(Bucket="lab", Key="a b/ü")["ContentLength"] == len(body)
secrets = boto3.client("secretsmanager", region)
secrets.create_secret(Name="x", SecretString="one")
try:
    secrets.create_secret(Name="x", SecretString="two")
    raise SystemExit("a second create went through")
except secrets.exceptions.ResourceExistsException:
    pass
assert secrets.get_secret_value(SecretId="x")["SecretString"] == "one"
ssm = boto3.client("ssm", region)
ssm.put_parameter(Name="/p", Value="v", Type="SecureString")
assert ssm.get_parameter(Name="/p", WithDecryption=True)["Parameter"]["Value"] == "v"
assert boto3.client("sts", region).get_caller_identity()["Account"] == "123456789012"
iam = boto3.client("iam", region)
iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")
assert iam.get_role(RoleName="r")["Role"]["RoleName"] == "r"
ec2, groups = boto3.client("ec2", region), boto3.client("autoscaling", region)
image = ec2.register_image(Name="debian-12", RootDeviceName="/dev/xvda")["ImageId"]
ec2.create_launch_template(LaunchTemplateName="servers", LaunchTemplateData={
    "ImageId": image, "InstanceType": "t3.micro", "KeyName": "kraken", "UserData": "aGVsbG8=",
    "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "grown"}]}]})
groups.create_auto_scaling_group(AutoScalingGroupName="g", MinSize=2, MaxSize=3, VPCZoneIdentifier=subnet,
    LaunchTemplate={"LaunchTemplateName": "servers", "Version": "$Latest"})
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_sdks_calls_pass_through_and_groups_make_hosts() {
    let lab = running(vec![spec("one", "us-west-2a")]).await;
    let subnets = lab.call("DescribeSubnets", &[]).await.unwrap();
    let subnet = subnets.find("subnetId").unwrap().text.clone();
    let script = lab.folder.path().join("script.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let ran = tokio::process::Command::new(lab.python())
        .arg(&script)
        .arg(&subnet)
        .env("AWS_ENDPOINT_URL", lab.endpoint())
        .envs([("AWS_ACCESS_KEY_ID", "lab"), ("AWS_SECRET_ACCESS_KEY", "lab"), ("NO_PROXY", "*")])
        .output()
        .await
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let grown = |lab: &Running| -> Vec<Instance> {
        let told = lab.listener.told.lock().unwrap();
        told.iter().filter(|i| i.name == "grown" && i.state == InstanceState::Running).cloned().collect()
    };
    let first = grown(&lab);
    assert_eq!(first.len(), 2);
    assert_eq!((first[0].user_data.as_deref(), first[0].image.as_str()), (Some(b"hello".as_slice()), "debian-12"));
    assert_eq!(first[0].public_keys, [public_line(&lab.private_key())]);
    lab.call("TerminateInstances", &[("InstanceId.1", &first[0].id)]).await.unwrap();
    let second = grown(&lab);
    assert_eq!(second.len(), 2);
    assert!(second.iter().all(|instance| instance.id != first[0].id), "replaced");
}

#[test]
fn calls_are_told_apart() {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8".parse().unwrap());
    headers.insert(
        AUTHORIZATION,
        "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/ec2/aws4_request, SignedHeaders=h, Signature=s"
            .parse()
            .unwrap(),
    );
    let call = |headers: &HeaderMap, body: &str| Call::read(&Method::POST, None, headers, body.as_bytes());
    let run = call(&headers, "Action=RunInstances&Version=2016-11-15&UserData=a%2Bb");
    assert_eq!(
        (run.region.as_str(), run.service.as_str(), run.parameter("UserData")),
        ("eu-west-1", "ec2", Some("a+b"))
    );
    assert!(run.mutates());
    assert!(!call(&headers, "Action=DescribeInstances").mutates());
    assert!(call(&HeaderMap::new(), "Action=RunInstances").parameters.is_empty(), "no form, no call");
    headers.insert(
        AUTHORIZATION,
        "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/sts/aws4_request, SignedHeaders=h, Signature=s"
            .parse()
            .unwrap(),
    );
    assert!(!call(&headers, "Action=AssumeRole").compute());
    headers.insert(
        AUTHORIZATION,
        "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/autoscaling/aws4_request".parse().unwrap(),
    );
    assert!(call(&headers, "Action=SetDesiredCapacity").mutates());
    assert_eq!(scope("Basic abc"), None);
    assert_eq!(scope("Credential=a/b"), None);
}
