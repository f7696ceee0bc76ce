//! The lab's promises about single hosts (docs/lab.md, docs/lab-cloud.md), on borrowed ones.

use rollcall_tests::{Lab, Said};

/// What a host says to a request to the metadata service: status code on the last line.
fn imds(lab: &Lab, host: &str, arguments: &str) -> Said {
    lab.root(host, &format!("curl --silent --max-time 20 --write-out '\\n%{{http_code}}' {arguments}"))
}

const TOKEN: &str =
    "--request PUT http://169.254.169.254/latest/api/token --header 'X-aws-ec2-metadata-token-ttl-seconds: 60'";

fn token(lab: &Lab, host: &str) -> String {
    let said = imds(lab, host, TOKEN).ok();
    let (token, code) = said.text().rsplit_once('\n').expect("token and status");
    assert_eq!(code, "200", "{}", said.report());
    token.to_owned()
}

fn metadata(lab: &Lab, host: &str, token: &str, path: &str) -> (String, String) {
    let arguments = format!("--header 'X-aws-ec2-metadata-token: {token}' http://169.254.169.254/latest/{path}");
    let said = imds(lab, host, &arguments).ok();
    let (body, code) = said.out.trim_end().rsplit_once('\n').expect("body and status");
    (code.to_owned(), body.to_owned())
}

#[test]
fn status_knows_every_host_of_the_file() {
    let status = Lab::shared().status();
    let names: Vec<&str> = status.hosts.iter().map(|host| host.name.as_str()).collect();
    let numbered = |name: &'static str| (1..=14).map(move |n| format!("{name}-{n}"));
    let mut by_name: Vec<String> = numbered("server").chain(numbered("client")).chain(["jump".to_owned()]).collect();
    by_name.sort();
    assert_eq!(names, by_name);
    assert_eq!(status.state, "up");
    let server = status.hosts.iter().find(|host| host.name == "server-1").expect("it is named above");
    assert_eq!(server.tags.get("Role").map(String::as_str), Some("consul_server"));
    assert_eq!(server.zone, "us-west-2a");
    assert!(server.id.starts_with("i-") && server.host_keys.len() >= 2, "{server:?}");
}

#[test]
fn exec_hands_over_words_output_and_exit_code() {
    let hosts = Lab::shared().borrow(1, "");
    let (lab, host) = (&hosts.lab, hosts.name(0));
    let said = lab.lab(["exec", host, "--", "printf", "%s|", "a b", "$HOME", "it's"]).ok();
    assert_eq!(said.out, "a b|$HOME|it's|");
    lab.exec(host, "echo out; echo wrong >&2; exit 7").ends(7).says("out").says("wrong");
    assert_eq!(lab.exec(host, "id --user --name; sudo --non-interactive id --user").ok().text(), "admin\n0");
    lab.lab(["exec", "web-9", "--", "true"]).ends(1).says("web-9");
}

#[test]
fn a_host_is_a_debian_with_its_own_systemd_that_is_content() {
    let hosts = Lab::shared().borrow(1, "");
    let state = hosts.root(0, "systemctl is-system-running --wait");
    assert_eq!(state.text(), "running", "{}\n{}", state.report(), hosts.root(0, "systemctl --failed").out);
    let address = hosts.host(0).address.replace('.', "-");
    assert_eq!(hosts.root(0, "hostname").ok().text(), format!("ip-{address}"));
    assert_eq!(hosts.root(0, "ps -p 1 -o comm=").ok().text(), "systemd");
}

#[test]
fn nothing_leaves_the_lab() {
    let hosts = Lab::shared().borrow(1, "");
    // An address that is nobody's, by RFC 5737.
    let said = hosts.root(0, "curl --silent --show-error --max-time 5 http://192.0.2.1/");
    assert_ne!(said.code, 0, "{}", said.report());
    assert!(said.took.as_secs() < 4, "it must be refused, not time out\n{}", said.report());
    Lab::shared().shell("curl --silent --max-time 5 http://192.0.2.1/").ends(7);
}

/// Where it is lent by one of the hosts it changes with them, and for seconds the others talk to a gateway that is not there.
#[test]
fn the_gateway_keeps_its_hardware_address_while_hosts_come_and_go() {
    let lab = Lab::shared();
    let of = |kind: &str| -> Vec<String> {
        let said = lab.shell(&format!("ip -oneline link show type {kind}")).ok();
        let address =
            |line: &str| line.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned);
        said.out.lines().filter_map(address).collect()
    };
    let (bridge, ports) = (of("bridge"), of("veth"));
    assert!(bridge.len() == 1 && !ports.is_empty(), "{bridge:?} {ports:?}");
    assert!(!ports.contains(&bridge[0]), "{bridge:?} {ports:?}");
    let held = lab.borrow(1, "").root(0, "ip neighbour show").ok();
    held.says(&format!("lladdr {}", bridge[0]));
}

#[test]
fn metadata_needs_a_token_of_the_same_host() {
    let hosts = Lab::shared().borrow(2, "");
    let (lab, one, other) = (&hosts.lab, hosts.name(0), hosts.name(1));
    let code = |said: Said| said.ok().text().rsplit('\n').next().unwrap_or_default().to_owned();
    assert_eq!(code(imds(lab, one, "http://169.254.169.254/latest/meta-data/instance-id")), "401");
    assert_eq!(code(imds(lab, one, "--request PUT http://169.254.169.254/latest/api/token")), "400");
    assert_eq!(code(imds(lab, one, &format!("{TOKEN} --header 'X-Forwarded-For: 10.0.0.1'"))), "403");
    let token = token(lab, one);
    assert_eq!(metadata(lab, one, &token, "meta-data/instance-id"), ("200".to_owned(), hosts.host(0).id.clone()));
    assert_eq!(metadata(lab, other, &token, "meta-data/instance-id").0, "401");
}

#[test]
fn metadata_tells_the_callers_own_instance() {
    let hosts = Lab::shared().borrow(1, "server");
    let (lab, host) = (&hosts.lab, hosts.host(0));
    let token = token(lab, &host.name);
    let ask = |path: &str| {
        let (code, body) = metadata(lab, &host.name, &token, path);
        assert_eq!(code, "200", "{path}: {body}");
        body
    };
    assert_eq!(ask("meta-data/local-ipv4"), host.address);
    assert_eq!(ask("meta-data/placement/availability-zone"), host.zone);
    assert_eq!(ask("meta-data/placement/region"), "us-west-2");
    assert_eq!(ask("meta-data/tags/instance/Role"), "consul_server");
    assert_eq!(ask("meta-data/tags/instance/Name"), host.name);
    let document: serde_json::Value = serde_json::from_str(&ask("dynamic/instance-identity/document")).expect("JSON");
    assert_eq!(document["instanceId"], host.id.as_str());
    assert_eq!(metadata(lab, &host.name, &token, "meta-data/no-such-thing").0, "404");
}

#[test]
fn reset_gives_an_empty_disk_and_the_same_identity() {
    let hosts = Lab::shared().borrow(1, "");
    let identity = "cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub; hostname";
    let before = hosts.root(0, identity).ok().out;
    hosts.root(0, "touch /root/was-here /etc/was-here /var/lib/was-here").ok();
    hosts.lab.lab(["reset", hosts.name(0)]).ok();
    assert_eq!(hosts.root(0, "ls /root/was-here /etc/was-here /var/lib/was-here 2> /dev/null").text(), "");
    assert_eq!(hosts.root(0, identity).ok().out, before);
    // It answers on SSH, and by the key that is known.
    hosts.lab.exec(hosts.name(0), "true").ok();
}

#[test]
fn a_killed_host_is_down_until_it_is_started() {
    let hosts = Lab::shared().borrow(1, "");
    let (lab, host) = (&hosts.lab, hosts.host(0));
    hosts.root(0, "echo kept > /root/kept; sync").ok();
    lab.lab(["kill", &host.name]).ok();
    assert_eq!(lab.host(&host.name).state, "killed");
    lab.exec(&host.name, "true").ends(1).says("is not up");
    // The cloud does not notice.
    lab.ec2(&format!("Action=DescribeInstances&InstanceId.1={}", host.id)).ok().says("<name>running</name>");
    lab.lab(["start", &host.name]).ok();
    assert_eq!(lab.host(&host.name).state, "up");
    assert_eq!(hosts.read(0, "/root/kept"), "kept\n");
}

#[test]
fn hosts_follow_the_ec2_api_before_it_answers() {
    let hosts = Lab::shared().borrow(1, "");
    let (lab, host) = (&hosts.lab, hosts.host(0));
    lab.ec2(&format!("Action=StopInstances&InstanceId.1={}", host.id)).ok();
    assert_eq!(lab.host(&host.name).state, "stopped");
    lab.ec2(&format!("Action=StartInstances&InstanceId.1={}", host.id)).ok();
    assert!(["booting", "up"].contains(&lab.host(&host.name).state.as_str()));
    lab.lab(["start", &host.name]).ok();
    lab.exec(&host.name, "true").ok();
    lab.ec2("Action=StopInstances&InstanceId.1=i-00000000000000000").ends(22).says("InvalidInstanceID.NotFound");
}

#[test]
fn the_console_tells_the_host_keys_as_ec2_does() {
    let hosts = Lab::shared().borrow(1, "");
    let (lab, host) = (&hosts.lab, hosts.host(0));
    let console = lab.lab(["console", &host.name]).ok().says("BEGIN SSH HOST KEY KEYS").out;
    let key = hosts.read(0, "/etc/ssh/ssh_host_ed25519_key.pub");
    let key = key.split_whitespace().nth(1).expect("a public key has three words");
    assert!(console.contains(key), "{console}");
    let line = format!(
        "printf '%s' '{}' | sed -n 's/.*<output>\\(.*\\)<.output>.*/\\1/p' | base64 --decode",
        lab.ec2(&format!("Action=GetConsoleOutput&InstanceId.1={0}&InstanceId={0}", host.id))
            .ok()
            .out
            .replace('\n', "")
    );
    lab.shell(&line).ok().says(key);
}

#[test]
fn a_full_disk_takes_no_byte_and_a_read_only_one_no_file() {
    let hosts = Lab::shared().borrow(1, "");
    let (lab, name) = (&hosts.lab, hosts.name(0));
    lab.lab(["fault", name, "disk-full"]).ok();
    lab.exec(name, "head --bytes 10000 /dev/zero > /home/admin/file").ends(1).says("No space left on device");
    lab.lab(["fault", name, "clear"]).ok();
    lab.exec(name, "head --bytes 10000 /dev/zero > /home/admin/file && stat --format %s /home/admin/file")
        .ok()
        .says("10000");
    lab.lab(["fault", name, "read-only"]).ok();
    lab.exec(name, "touch /home/admin/other").ends(1).says("Read-only file system");
    lab.lab(["fault", name, "clear"]).ok();
    lab.exec(name, "touch /home/admin/other").ok();
}

#[test]
fn the_mirror_has_the_vendors_layout_and_bad_sides() {
    let hosts = Lab::shared().borrow(1, "");
    let mirror = hosts.lab.status().mirror;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let zip = format!("consul_1.22.2_linux_{architecture}.zip");
    let base = format!("{mirror}/consul/1.22.2");
    hosts
        .root(
            0,
            &format!(
                "cd /tmp && curl --silent --fail --remote-name {base}/{zip} --remote-name {base}/consul_1.22.2_SHA256SUMS && \
                 sha256sum --check --ignore-missing consul_1.22.2_SHA256SUMS && unzip -q {zip} && ./consul version"
            ),
        )
        .ok()
        .says(&format!("{zip}: OK"))
        .says("Consul v1.22.2");
    let status = format!(
        "curl --silent --output /dev/null --write-out '%{{http_code}}' {mirror}/faults/404/consul/1.22.2/{zip}"
    );
    hosts.root(0, &status).ok().says("404");
    // 18: the connection was cut before all that was promised had come.
    hosts.root(0, &format!("curl --silent --output /dev/null {mirror}/faults/half/consul/1.22.2/{zip}")).ends(18);
}

#[test]
fn packages_come_from_the_labs_signed_repository() {
    let hosts = Lab::shared().borrow(1, "");
    let gateway = hosts.lab.status().gateway;
    let key = "/etc/apt/keyrings/rollcall-lab.gpg";
    hosts
        .root(
            0,
            &format!(
                "set -e; mkdir -p /etc/apt/keyrings; curl --silent --fail http://{gateway}:8081/key.gpg > {key}; \
                 rm -f /etc/apt/sources.list; \
                 echo 'deb [signed-by={key}] http://{gateway}:8081 lab main' > /etc/apt/sources.list.d/lab.list; \
                 apt-get update --quiet; apt-get install --yes --quiet rollcall-probe=1.0; \
                 dpkg-query --show --showformat '${{Version}}' rollcall-probe"
            ),
        )
        .ok()
        .says("1.0");
    hosts.root(0, "apt-get install --yes --quiet rollcall-probe && dpkg-query --show --showformat '${Version}' rollcall-probe").ok().says("1.1");
}

#[test]
fn forward_reaches_what_listens_on_a_hosts_loopback() {
    let hosts = Lab::shared().borrow(1, "");
    hosts.root(0, "mkdir -p /srv/page && echo hello from the host > /srv/page/index.html").ok();
    hosts
        .root(
            0,
            "cat > /etc/systemd/system/page.socket << END\n[Socket]\nListenStream=127.0.0.1:8500\nAccept=yes\nEND\n\
             cat > '/etc/systemd/system/page@.service' << END\n[Service]\nStandardInput=socket\nExecStart=/bin/echo hello from the host\nEND\n\
             systemctl daemon-reload && systemctl start page.socket",
        )
        .ok();
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let to = format!("{}:8500", hosts.name(0));
    let forward = rollcall_tests::Running::start(&mut hosts.lab.command(["forward", &port.to_string(), "--to", &to]));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let text = loop {
        let mut text = String::new();
        let read = std::net::TcpStream::connect(("127.0.0.1", port))
            .and_then(|mut stream| std::io::Read::read_to_string(&mut stream, &mut text));
        if read.is_ok() && !text.is_empty() || std::time::Instant::now() > deadline {
            break text;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert_eq!(text, "hello from the host\n");
    forward.signal("INT");
}
