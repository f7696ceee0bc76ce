//! The lab's promises about whole labs. Each test boots labs of its own; they run one after the other.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rollcall_tests::{Lab, OwnLab, program, run, until};

const ONE: &str = "name: one\nkeys: [{name: k}]\ninstances:\n  - {name: web, key: k}\n";
const TWO: &str = "name: two\nkeys: [{name: k}]\ninstances:\n  - {name: web, count: 2, key: k}\n";

/// Everything on this machine that belongs to a lab of this name.
fn traces(lab: &str) -> Vec<String> {
    let mut found = Vec::new();
    let namespace = format!("rollcall-{lab}");
    for path in [format!("/run/rollcall-lab/{lab}"), format!("/run/netns/{namespace}")] {
        if Path::new(&path).exists() {
            found.push(path);
        }
    }
    let listed = |words: &[&str]| run(Command::new(words[0]).args(&words[1..]), Duration::from_secs(20)).ok().out;
    let belongs = |line: &&str| {
        line.contains(&format!("/{lab}/")) || line.contains(&namespace) || line.contains(&format!("init {lab}"))
    };
    found.extend(listed(&["cat", "/proc/self/mountinfo"]).lines().filter(belongs).map(|line| format!("mount {line}")));
    found.extend(listed(&["ps", "-eo", "pid,args"]).lines().filter(belongs).map(|line| format!("process {line}")));
    let groups = listed(&["find", "/sys/fs/cgroup", "-type", "d", "-name", &format!("*{lab}*")]);
    found.extend(groups.lines().map(|line| format!("control group {line}")));
    found
}

#[test]
fn down_leaves_nothing_and_may_be_said_again() {
    let lab = OwnLab::boot_text(TWO);
    lab.exec("web-1", "true").ok();
    // A trace is seen while there is one: else the end of this test would prove nothing.
    assert!(traces(&lab.name).len() > 3, "{:?}", traces(&lab.name));
    lab.lab(["down"]).ok().says("is down");
    assert_eq!(traces(&lab.name), [""; 0]);
    lab.lab(["down"]).ok();
    lab.lab(["status"]).ends(1).says(&lab.name);
}

#[test]
fn two_labs_do_not_disturb_each_other_and_a_crash_leaves_nothing() {
    let one = OwnLab::boot_text(ONE);
    let other = OwnLab::boot_text(TWO);
    assert_ne!(one.status().subnet, other.status().subnet);
    let address = other.host("web-1").address;
    one.root("web", &format!("ping -c 1 -W 1 {address}")).ends(1).says("Unreachable");
    // The supervisor's death takes all of its lab along, and nothing of the other.
    let supervisor =
        run(Command::new("pgrep").args(["--full", &format!("supervise {}$", one.name)]), Duration::from_secs(5)).ok();
    let supervisor = supervisor.text().lines().next().expect("its process id").to_owned();
    run(Command::new("kill").args(["-s", "KILL", &supervisor]), Duration::from_secs(5)).ok();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !traces(&one.name).iter().all(|trace| !trace.starts_with("process")) {
        assert!(Instant::now() < deadline, "{:?}", traces(&one.name));
        std::thread::sleep(Duration::from_millis(100));
    }
    one.lab(["status"]).ends(1).says("has crashed");
    other.exec("web-2", "true").ok();
    one.lab(["down"]).ok();
    assert_eq!(traces(&one.name), [""; 0]);
    other.exec("web-1", "true").ok();
}

/// Memory of a lab's disks, in MiB, as its control group counts it.
fn disks(lab: &str) -> u64 {
    let path = format!("*rollcall-lab/{lab}/memory.stat");
    let said = run(
        Command::new("find").args(["/sys/fs/cgroup", "-path", &path, "-exec", "cat", "{}", ";"]),
        Duration::from_secs(20),
    );
    let of = |name: &str| -> Option<u64> {
        said.out.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    // The first is version 1's.
    of("total_shmem").or_else(|| of("shmem")).expect("it counts") >> 20
}

#[test]
fn a_disk_that_is_thrown_away_gives_its_memory_back() {
    let lab = OwnLab::boot_text(TWO);
    let before = disks(&lab.name);
    // Each of the two was there when the other booted.
    for host in ["web-1", "web-2", "web-1"] {
        // Over SSH: what is entered from here counts as ours.
        lab.exec(host, "sudo dd if=/dev/zero of=/opt/big bs=1M count=300").ok();
        // The kernel adds up what its processors have counted every two seconds.
        let soon = Duration::from_secs(20);
        until(soon, "memory of a disk that is there", || disks(&lab.name) >= before + 250);
        lab.lab(["reset", host]).ok();
        until(soon, &format!("memory back from {host}: {before} MiB before"), || disks(&lab.name) < before + 100);
    }
}

#[test]
fn a_partition_cuts_both_ways_until_it_is_healed() {
    let lab = OwnLab::boot_text(TWO);
    let (one, other) = (lab.host("web-1").address, lab.host("web-2").address);
    let ping = |from: &str, to: &str| lab.root(from, &format!("ping -c 1 -W 1 {to}")).code == 0;
    assert!(ping("web-1", &other) && ping("web-2", &one));
    lab.lab(["partition", "web-1", "web-2"]).ok();
    assert!(!ping("web-1", &other) && !ping("web-2", &one));
    // Only these two are cut: each still answers the rest of the world.
    lab.exec("web-1", "true").ok();
    lab.exec("web-2", "true").ok();
    lab.lab(["heal"]).ok();
    assert!(ping("web-1", &other) && ping("web-2", &one));
}

#[test]
fn with_a_jump_host_ssh_is_open_to_it_only() {
    let lab = OwnLab::boot_text(
        "name: jumps\njump_host: jump\nkeys: [{name: k}]\ninstances:\n  - {name: web, key: k}\n  - {name: jump, key: k}\n",
    );
    let (web, jump) = (lab.host("web").address, lab.host("jump").address);
    let reach = |address: &str| lab.shell(&format!("timeout 3 bash -c 'exec 3<> /dev/tcp/{address}/22'")).code == 0;
    assert!(reach(&jump) && !reach(&web));
    // The lab's own client goes through it, and from within the way is open.
    lab.exec("web", "true").ok();
    lab.exec("jump", &format!("timeout 3 bash -c 'exec 3<> /dev/tcp/{web}/22'")).ok();
}

#[test]
fn instances_that_the_api_starts_and_ends_are_hosts() {
    let lab = OwnLab::boot_text(ONE);
    let subnet = lab.ec2("Action=DescribeSubnets").ok();
    let subnet =
        subnet.out.split("<subnetId>").nth(1).and_then(|rest| rest.split('<').next()).expect("a subnet").to_owned();
    let image = lab.ec2(&format!("Action=DescribeInstances&InstanceId.1={}", lab.host("web").id)).ok();
    let image =
        image.out.split("<imageId>").nth(1).and_then(|rest| rest.split('<').next()).expect("an image").to_owned();
    lab.ec2(&format!(
        "Action=RunInstances&ImageId={image}&InstanceType=t3.micro&MinCount=1&MaxCount=1&KeyName=k&SubnetId={subnet}\
         &TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=extra"
    ))
    .ok();
    lab.lab(["start", "extra"]).ok();
    lab.exec("extra", "hostname").ok().says("ip-10-77-");
    let id = lab.host("extra").id;
    lab.ec2(&format!("Action=TerminateInstances&InstanceId.1={id}")).ok();
    assert!(lab.status().hosts.iter().all(|host| host.id != id));
}

#[test]
fn a_wrong_lab_file_is_refused_with_its_line_before_anything_starts() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a temporary file");
    let lab = Lab { name: format!("{}-refused", Lab::shared().name) };
    for (text, told) in [
        ("name: x\ninstances:\n  - {name: web, tipe: t3.micro}\n", ["tipe", ":3"]),
        ("name: x\ninstances:\n  - {name: web, count: many}\n", ["count", ":3"]),
        ("name: x\nname: y\ninstances: []\n", ["name", ":2"]),
    ] {
        std::fs::write(file.path(), text).expect("it can be written");
        let path = file.path().to_str().expect("a path in text");
        let said = run(Command::new(program("lab")).args(["--name", &lab.name, "up", path]), Duration::from_mins(1));
        assert_ne!(said.code, 0, "{}", said.report());
        said.says(told[0]).says(told[1]);
        assert_eq!(traces(&lab.name), [""; 0]);
    }
}
