//! Certificates on real hosts: keys that are made there and stay there, names that the controller decides, renewal in time, and
//! Consul with TLS between its agents.

use std::time::Duration;

use rollcall_engine::pki::Holder;
use rollcall_engine::secrets::grants::Product;
use rollcall_tests::{Aged, Borrowed, Lab, Project, Said, until};

/// Hosts of a cluster: the servers first, then one client.
struct Ground {
    hosts: Borrowed,
    project: Project,
    servers: usize,
}

impl Ground {
    fn new(servers: usize) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(servers + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", servers), ("consul_clients", 1)]);
        let project = Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory);
        project.add_settings("cluster: kraken\n");
        let ground = Self { hosts, project, servers };
        ground.configure("");
        ground
    }

    /// The variables of role consul, on all hosts.
    fn configure(&self, more: &str) {
        let status = self.hosts.lab.status();
        let given = format!(
            "consul_mirror: {}\nconsul_datacenter: dc1\nconsul_bind_cidr: {}\nbase_time_sync: chrony\n",
            status.mirror, status.subnet
        );
        self.project.write("group_vars/all.yaml", &format!("{given}{more}"));
    }

    /// A play that has each host make its certificate, with `more` arguments.
    fn site(&self, more: &str, options: &[&str]) -> Said {
        let site = format!(
            "- hosts: all\n  become: true\n  tasks:\n    - name: Certificate\n      certificate:\n        path: /etc/node\n        \
             product: consul\n        server: \"{{{{ pretend | default('consul_servers' in group_names) }}}}\"\n        datacenter: dc1\n        \
             node: \"{{{{ inventory_hostname }}}}\"\n        address: \"{{{{ cluster.self.address }}}}\"\n{more}      \
             notify: tell\n  handlers:\n    - {{name: tell, shell: echo told >> /run/told}}\n"
        );
        self.project.write("site.yaml", &site);
        self.project.controller(["run", "site.yaml", "--json"].into_iter().chain(options.iter().copied()))
    }

    fn consul(&self, more: &[&str]) -> Said {
        self.project.controller(["run", "consul.yaml", "--json"].into_iter().chain(more.iter().copied()))
    }

    #[track_caller]
    fn all(&self, line: &str) -> Vec<String> {
        (0..=self.servers).map(|host| self.hosts.root(host, line).ok().text().to_owned()).collect()
    }

    /// Both agents are members, and what is written by the client's is there.
    #[track_caller]
    fn stands(&self, word: &str) {
        let client = self.servers;
        let members = self.hosts.root(client, "consul members").ok().out;
        assert_eq!(members.matches(" alive ").count(), client + 1, "{word}: {members}");
        // A client's agent may learn by its first write that the server it knew has restarted: docs/role-consul.md.
        self.hosts.root(client, &format!("consul kv put {word} yes || consul kv put {word} yes")).ok();
    }

    /// The store's file, if there is one: its name and the hash of what it holds.
    fn store(&self) -> String {
        self.project.shell("find ~ -name '*.age' -exec sha256sum {} +").out
    }
}

#[test]
fn nodes_make_their_keys_and_get_their_names() {
    let ground = Ground::new(1);
    // A check says it, and makes neither authority nor key.
    let checked = ground.site("", &["--check", "--diff"]).ok();
    assert_eq!((checked.counted("changed"), checked.counted("failed")), (2, 0), "{}", checked.report());
    assert_eq!(ground.store(), "");
    ground.hosts.root(0, "ls -d /etc/node /etc/.node-*").ends(2);

    let first = ground.site("", &["--diff"]).ok();
    assert_eq!(ground.all("cat /run/told"), ["told", "told"]);
    let modes = "cd /etc/node/ && stat --format '%n %a %U:%G' . cert.pem key.pem ca.pem";
    let wanted = ". 750 root:root\ncert.pem 644 root:root\nkey.pem 640 root:root\nca.pem 644 root:root";
    assert_eq!(ground.all(modes), [wanted, wanted]);
    let authorities = ground.all("cat /etc/node/ca.pem");
    let exported = ground.project.controller(["ca", "export"]).ok();
    assert_eq!([exported.text(), exported.text()], [&authorities[0], &authorities[1]]);
    ground.project.controller(["ca", "show"]).ok().says("kraken certificate authority").says("until");

    // OpenSSL judges: what each may serve, and what the client may not.
    let verify = |host: usize, name: &str| {
        let line =
            format!("cd /etc/node && openssl verify -x509_strict -CAfile ca.pem -verify_hostname {name} cert.pem");
        ground.hosts.root(host, &line).code == 0
    };
    let (server, client) = (ground.hosts.name(0).to_owned(), ground.hosts.name(1).to_owned());
    for (host, name, good) in [
        (0, "server.dc1.consul", true),
        (0, &*format!("{server}.server.dc1.consul"), true),
        (0, &server, true),
        (0, "localhost", true),
        (0, "client.dc1.consul", false),
        (1, "client.dc1.consul", true),
        (1, &client, true),
        (1, "server.dc1.consul", false),
        (1, &server, false),
    ] {
        assert_eq!(verify(host, name), good, "{host} {name}");
    }
    ground.all(
        "cd /etc/node && [ \"$(openssl pkey -in key.pem -pubout)\" = \"$(openssl x509 -in cert.pem -noout -pubkey)\" ]",
    );

    // The key is in its file and nowhere else: not in what is told, on the hosts, or on the controller.
    for (host, key) in ground.all("sed -n 2p /etc/node/key.pem").iter().enumerate() {
        assert!(key.len() > 40 && !first.out.contains(key.as_str()) && !first.err.contains(key.as_str()));
        let search = format!("grep -rlF -e '{key}' /etc /var /run /root /home /tmp /usr/local 2> /dev/null");
        let found = ground.hosts.root(host, &search);
        let files: Vec<&str> = found.out.lines().collect();
        assert!(files.len() == 1 && files[0].ends_with("/key.pem"), "{files:?}");
        ground.project.shell(&format!("grep -rF -e '{key}' ~ .")).ends(1);
    }

    let store = ground.store();
    for options in [&[][..], &["--check"]] {
        let again = ground.site("", options).ok();
        assert_eq!((again.counted("changed"), again.counted("may_change")), (0, 0), "{}", again.report());
    }
    assert_eq!(ground.all("cat /run/told"), ["told", "told"]);
    assert_eq!(ground.store(), store);

    // A client that takes itself for a server: its certificate stays what it is.
    let before = ground.all("readlink /etc/node");
    let refused = ground.site("", &["--limit", &client, "-e", "pretend=true"]).ends(4);
    refused
        .says("server.dc1.consul, and is good for client.dc1.consul as well")
        .says("the issuer goes by the inventory");
    assert_eq!(ground.all("readlink /etc/node"), before);

    what_ends_soon_is_renewed_and_one_of_another_authority_too(&ground);
}

/// Hosts whose certificates end soon, and then, have ended; and an authority that somebody brings.
fn what_ends_soon_is_renewed_and_one_of_another_authority_too(ground: &Ground) {
    for (sign, why) in
        [(Aged::ends_soon as fn(&Project, &Holder<'_>) -> Aged, "it ends on"), (Aged::ended, "it ended on")]
    {
        for host in 0..2 {
            let server = host == 0;
            let holder = Holder {
                product: Product::Consul,
                server,
                client: !server,
                place: "dc1",
                domain: "consul",
                node: ground.hosts.name(host),
                address: &ground.hosts.host(host).address,
            };
            ground.hosts.root(host, &sign(&ground.project, &holder).install("/etc/node")).ok();
        }
        let links = ground.all("readlink /etc/node");
        let renewed = ground.site("", &[]).ok().says(why);
        assert_eq!(renewed.counted("changed"), 4, "the certificate and the handler, each: {}", renewed.report());
        let newer = ground.all("readlink /etc/node");
        assert!(links.iter().zip(&newer).all(|(old, new)| old != new), "{links:?} {newer:?}");
        // The one of before stays for a handler that fails, and no other does.
        assert_eq!(ground.all("ls -d /etc/.node-* | wc -l"), ["2", "2"]);
        assert_eq!(ground.site("", &[]).ok().counted("changed"), 0);
    }

    // An authority of one's own.
    let make = "openssl req -x509 -nodes -newkey rsa:2048 -days 30 -subj /CN=corp -keyout corp.key -out corp.pem \
                -addext keyUsage=critical,keyCertSign";
    ground.project.shell(make).ok();
    let import = ["ca", "import", "--certificate", "corp.pem", "--key", "corp.key"];
    ground.project.controller(import).ends(1).says("has a certificate authority already").says("--replace");
    ground.project.controller(import.into_iter().chain(["--replace"])).ok().says("CN=corp");
    ground.site("", &[]).ok().says("authority has not signed it");
    ground.all(
        "cd /etc/node && openssl verify -CAfile ca.pem cert.pem && openssl x509 -in ca.pem -noout -subject | grep corp",
    );
    assert_eq!(ground.site("", &[]).ok().counted("changed"), 0);
}

#[test]
fn agents_of_consul_talk_with_certificates_only() {
    let ground = Ground::new(3);
    ground.configure("consul_tls: true\n");
    let checked = ground.consul(&["--check", "--diff", "--limit", "consul_servers"]).ok();
    assert_eq!(checked.counted("failed"), 0, "{}", checked.report());
    ground.consul(&[]).ok();
    let members = ground.hosts.root(0, "consul members").ok().out;
    assert_eq!(members.matches(" alive ").count(), 4, "{members}");
    ground.hosts.root(3, "curl --silent --fail http://127.0.0.1:8500/v1/catalog/nodes").ok().says(ground.hosts.name(1));

    // HTTPS with the server's certificate, to loopback; no certificate is asked of who calls.
    let https = "curl --silent --fail --cacert /etc/consul.d/tls/ca.pem https://localhost:8501/v1/status/leader";
    for leader in ground.all(https) {
        assert!(leader.contains(":8300"), "{leader}");
    }
    let name = "openssl s_client -connect 127.0.0.1:8501 -CAfile /etc/consul.d/tls/ca.pem -verify_return_error \
                -verify_hostname server.dc1.consul < /dev/null";
    ground.hosts.root(0, name).ok();
    ground.hosts.root(3, name).ends(1);
    // Who has no certificate is refused by the servers, in plain and in TLS.
    let address = ground.hosts.host(0).address.clone();
    let plain = format!("exec 3<> /dev/tcp/{address}/8300; printf '\\0' >&3; timeout 5 cat <&3");
    ground.hosts.root(3, &format!("bash -c \"{plain}\"")).ok();
    let told = "journalctl --unit consul | grep 'Non-TLS connection attempted'";
    until(Duration::from_secs(20), "a line in Consul's journal", || ground.hosts.root(0, told).code == 0);
    let bare = format!(
        "(sleep 2) | timeout 10 openssl s_client -connect {address}:8300 -alpn consul/rpc-single -CAfile /etc/consul.d/tls/ca.pem 2>&1"
    );
    ground.hosts.root(3, &bare).says("alert");
    let given = "-cert /etc/consul.d/tls/cert.pem -key /etc/consul.d/tls/key.pem";
    let with = bare.replace("-CAfile", &format!("{given} -CAfile"));
    ground.hosts.root(3, &with).says("Verify return code: 0").never_says("alert");

    for options in [&[][..], &["--check"]] {
        let again = ground.consul(options).ok();
        assert_eq!((again.counted("changed"), again.counted("may_change")), (0, 0), "{}", again.report());
    }

    // A new certificate is served after a reload: no agent restarts.
    let process = "systemctl show --property MainPID --property ActiveEnterTimestamp consul";
    let (before, served) =
        (ground.all(process), "openssl s_client -connect 127.0.0.1:8501 < /dev/null | openssl x509 -noout -serial");
    let old = ground.all(served);
    ground.all("rm /etc/consul.d/tls/cert.pem");
    let renewed = ground.consul(&[]).ok();
    assert_eq!(renewed.counted("changed"), 8, "the certificate and the reload, each: {}", renewed.report());
    assert_eq!(ground.all(process), before);
    until(Duration::from_secs(20), "new certificates on every host", || {
        old.iter().zip(&ground.all(served)).all(|(old, new)| old != new)
    });
    let new = ground.all(served);
    assert_eq!(new, ground.all("openssl x509 -in /etc/consul.d/tls/cert.pem -noout -serial"));
    // A store without this cluster's authority: the agents keep the certificates by which they talk.
    let links = ground.all("readlink /etc/consul.d/tls");
    let elsewhere = "XDG_DATA_HOME=$HOME/elsewhere";
    let line = format!("{elsewhere} \"$0\" run consul.yaml; echo \"ended $?\"");
    let said =
        ground.project.shell(&line.replace("$0", &rollcall_tests::program("controller").display().to_string())).ok();
    said.says("is in use, and is of another authority").says("controller ca show").says("ended 4");
    assert_eq!(ground.all("readlink /etc/consul.d/tls"), links);
    let healthy = "consul kv put a b && consul operator autopilot state | grep -i 'healthy.*true'";
    until(Duration::from_mins(1), "healthy servers", || ground.hosts.root(0, healthy).code == 0);
}

#[test]
fn a_cluster_that_runs_gets_tls_step_by_step() {
    let ground = Ground::new(3);
    ground.consul(&[]).ok();
    let started = |host: usize| {
        ground.hosts.root(host, "journalctl --unit consul --quiet | grep -c 'Started consul'").ok().text().to_owned()
    };
    ground.configure("consul_tls: true\n");
    let refused = ground.consul(&[]).ends(4);
    refused.says("is more than one step away").says("consul_tls=accept");
    assert_eq!(started(0), "1");
    for (count, word) in [(2, "accept"), (3, "use"), (4, "true")] {
        if word == "use" {
            // Where connections are made without TLS the authority can be replaced.
            let make = "openssl req -x509 -nodes -newkey rsa:2048 -days 3000 -subj /CN=corp -keyout corp.key -out corp.pem \
                        -addext keyUsage=critical,keyCertSign";
            ground.project.shell(make).ok();
            let import = ["ca", "import", "--certificate", "corp.pem", "--key", "corp.key", "--replace"];
            ground.project.controller(import).ok();
            let replaced = ground.consul(&[]).ok();
            assert_eq!(replaced.counted("changed"), 8, "the certificate and the reload: {}", replaced.report());
        }
        ground.configure(&format!("consul_tls: {word}\n"));
        ground.consul(&[]).ok();
        for host in 0..=3 {
            assert_eq!(started(host), count.to_string(), "{word}");
        }
        ground.stands(word);
        assert_eq!(ground.consul(&[]).ok().counted("changed"), 0, "{word}");
    }
    ground.configure("consul_tls: false\n");
    ground.consul(&[]).ends(4).says("is more than one step away");
}

/// Nobody has the authority's key any more, and agents talk by what it signed.
#[test]
fn an_authority_whose_key_is_lost_is_replaced_step_by_step() {
    let ground = Ground::new(1);
    ground.configure("consul_tls: true\n");
    ground.consul(&[]).ok();
    let (links, authority) = (ground.all("readlink /etc/consul.d/tls"), ground.all("cat /etc/consul.d/tls/ca.pem"));
    let delete = |name: &str| ground.project.controller(["secret", "delete", name, "--force"]).ok();
    // Its certificate alone is made again out of the key; the key is not.
    delete("ca/certificate");
    assert_eq!(ground.consul(&[]).ok().counted("changed"), 0);
    assert_eq!(ground.project.controller(["secret", "get", "ca/certificate"]).ok().text(), authority[0]);
    let key = ground.project.controller(["secret", "get", "ca/key"]).ok().out;
    delete("ca/key");
    ground.consul(&[]).ends(4).says("the key of the cluster's authority is lost").says("docs/certificates.md");
    // A backup of it, and all is as before.
    ground.project.write("backup", &key);
    let put = format!("'{}' secret put ca/key --force < backup", rollcall_tests::program("controller").display());
    ground.project.shell(&put).ok();
    assert_eq!(ground.consul(&[]).ok().counted("changed"), 0);

    // Without one: another authority, and down the steps with the old certificates.
    delete("ca/key");
    delete("ca/certificate");
    ground.consul(&[]).ends(4).says("is in use, and is of another authority");
    for word in ["use", "accept"] {
        ground.configure(&format!("consul_tls: {word}\n"));
        ground.consul(&[]).ok().says("is of another authority than the cluster's, and stays");
        assert_eq!(ground.all("readlink /etc/consul.d/tls"), links, "{word}");
        ground.stands(word);
    }
    let replaced = ground.consul(&[]).ok();
    assert_eq!(replaced.counted("changed"), 4, "the certificate and the reload: {}", replaced.report());
    for word in ["use", "true"] {
        ground.configure(&format!("consul_tls: {word}\n"));
        ground.consul(&[]).ok();
        ground.stands(word);
    }
    assert_eq!(ground.consul(&[]).ok().counted("changed"), 0);
    let newer = ground.all("cat /etc/consul.d/tls/ca.pem");
    assert!(newer[0] != authority[0] && newer[1] == newer[0]);
}
