//! `cluster_loss`: before anything of a server is touched, whether its cluster is lost. A cluster that was formed before is not
//! formed anew by servers that have none of its data: nobody but who runs it can know that nothing is left to come back.

use std::{
    net::{TcpStream, ToSocketAddrs},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    acl_bootstrap::was_formed,
    api::{self, SecretName},
};
use crate::{args, choice};

choice!(
    /// Whose cluster it is.
    Product { Consul = "consul", Nomad = "nomad" }
);

impl Product {
    fn name(self) -> &'static str {
        match self {
            Self::Consul => "consul",
            Self::Nomad => "nomad",
        }
    }
}

args! {
    /// Arguments.
    pub struct Args {
        /// Whose cluster it is.
        product []: Product, required;
        /// The name under which it is written down that the cluster was formed: `consul/formed`, `nomad/formed`.
        mark []: SecretName, required;
        /// What a server has that has been a member: `/var/lib/consul/raft`. Where it is, nothing is asked.
        data []: PathBuf, required;
        /// Where the other servers are: names or addresses; another port behind them is left out. If one of them says how servers are
        /// found (`provider=aws …`), nobody can be asked, and nothing is refused.
        servers []: Vec<String>, required;
        /// The port on which servers listen for each other.
        port []: u16, required;
        /// For how many seconds to ask: one that has its data may be about to start.
        wait []: Duration = Duration::from_secs(30);
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "cluster_loss",
    aliases: &[],
    summary: "Stops a server that has none of its cluster's data where no other server is there to give it",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("server", "The server that answered, where one was asked."),
        ("total_loss", "In failures: the cluster was formed before, and nobody has its data."),
    ]],
    example: "- name: the cluster is not lost\n  cluster_loss:\n    product: consul\n    mark: consul/formed\n    data: /var/lib/consul/raft\n    \
              servers: [10.0.0.2, 10.0.0.3]\n    port: 8300\n",
    plan,
};

/// Between two rounds, and for one connection.
const PAUSE: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(2);

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let member = cx.host.meta_follow(&args.data).map_err(|e| Failure::io("look at", &args.data, &e))?;
    if member.is_some() || !was_formed(&args.mark, cx)? {
        return Ok(Plan::Unchanged(Outcome::unchanged()));
    }
    if args.servers.iter().any(|server| server.contains('=')) {
        return Ok(Plan::Unchanged(Outcome::unchanged().msg("how servers are found is the product's own affair")));
    }
    let servers: Vec<String> = args.servers.iter().map(|server| at(server, args.port)).collect();
    let check = cx.host.is_overlay();
    let begun = Instant::now();
    loop {
        if let Some(server) = servers.iter().find(|server| answers(server)) {
            return Ok(Plan::Unchanged(Outcome::unchanged().with("server", server.as_str())));
        }
        if check || servers.is_empty() || begun.elapsed() + PAUSE > args.wait {
            break;
        }
        thread::sleep(PAUSE);
    }
    let lost = lost(&args, &servers);
    // A run may start another one in the meantime.
    if check && !servers.is_empty() { Ok(api::may_change(lost.message)) } else { Err(lost) }
}

fn lost(args: &Args, servers: &[String]) -> Failure {
    let (product, data, mark) = (args.product.name(), args.data.display(), &args.mark.0);
    let nobody = match servers {
        [] => "there is no other one".to_owned(),
        _ => format!("no other one answers ({})", servers.join(", ")),
    };
    Failure::new(format!(
        "this cluster was formed before, this server has none of its data ({data} is not there), and {nobody}"
    ))
    .hint(format!(
        "nothing was started here. Where servers still have their data, start {product} there first (systemctl start {product}), \
         and run again: this one joins them. If all have lost it, take the mark away (`controller secret delete {mark} --force`), run again, \
         and restore a snapshot: 'Total loss' in docs/role-{product}.md"
    ))
    .with("total_loss", true)
}

/// The address with our port: `10.0.0.2`, `10.0.0.2:8301`, `[fd00::2]:8301`, `fd00::2`, `consul-1.example.com`.
fn at(server: &str, port: u16) -> String {
    if server.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{server}]:{port}");
    }
    let host = match server.rsplit_once(':') {
        Some((host, digits)) if digits.parse::<u16>().is_ok() => host,
        _ => server,
    };
    format!("{host}:{port}")
}

/// Whether anybody listens there.
fn answers(server: &str) -> bool {
    let addresses = server.to_socket_addrs().into_iter().flatten();
    addresses.take(4).any(|address| TcpStream::connect_timeout(&address, CONNECT).is_ok())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Arc};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        host::overlay::Overlay,
        modules::fake::{Fake, call},
        secrets::{
            Name, Secret,
            grants::{GrantError, Grants, Issued, SignRequest},
        },
    };

    /// A store that has the mark, has it not, or cannot be asked.
    #[derive(Debug)]
    struct Store(Result<(), GrantError>);

    impl Grants for Store {
        fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
            assert_eq!(name.as_str(), "consul/formed");
            self.0.clone().map(|()| Secret::new("2026-01-01T00:00:00Z"))
        }
        fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
            Err(GrantError::refused("no"))
        }
    }

    fn formed() -> Store {
        Store(Ok(()))
    }

    fn asked(host: &dyn crate::host::Read, store: Store, servers: &[&str], port: u16) -> Result<Outcome, Failure> {
        let args = json!({"product": "consul", "mark": "consul/formed", "data": "/var/lib/consul/raft", "servers": servers,
            "port": port, "wait": 0});
        let secrets: Arc<dyn Grants> = Arc::new(store);
        let planned = plan(&call("cluster_loss", args), &Cx { host, facts: &Value::Null, secrets: &secrets })?;
        let Plan::Unchanged(outcome) = planned else { panic!("it changes nothing, ever") };
        assert!(!outcome.changed);
        Ok(outcome)
    }

    /// A port of this machine on which nobody listens.
    fn silent() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn a_server_without_data_does_not_begin_a_formed_cluster_anew() {
        let (fake, port) = (Fake::new(), silent());
        let lost = asked(&fake, formed(), &["127.0.0.1"], port).unwrap_err();
        assert_eq!(
            lost.message,
            format!(
                "this cluster was formed before, this server has none of its data (/var/lib/consul/raft is not there), and no other one \
                 answers (127.0.0.1:{port})"
            )
        );
        let hint = lost.hint.unwrap();
        for part in ["controller secret delete consul/formed --force", "systemctl start consul", "docs/role-consul.md"]
        {
            assert!(hint.contains(part), "{hint}");
        }
        assert_eq!(lost.data["total_loss"], true);
        let alone = asked(&fake, formed(), &[], port).unwrap_err();
        assert!(alone.message.ends_with("and there is no other one"), "{alone}");
        // What a check cannot know: a run may start another one first.
        let overlay = Overlay::new(&fake);
        assert!(asked(&overlay, formed(), &["127.0.0.1"], port).unwrap().unknown);
        assert!(asked(&overlay, formed(), &[], port).is_err());
    }

    #[test]
    fn who_has_data_or_company_or_begins_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (fake, port) = (Fake::new(), listener.local_addr().unwrap().port());
        // Behind an address the port of something else.
        for server in ["127.0.0.1", "127.0.0.1:8301", "localhost"] {
            let found = asked(&fake, formed(), &["127.0.0.1:x", server], port).unwrap();
            assert_eq!(found.data["server"], at(server, port));
        }
        let member = Fake::new().file("/var/lib/consul/raft/raft.db", "");
        assert!(asked(&member, formed(), &["127.0.0.1"], silent()).is_ok());
        let fresh = Store(Err(GrantError::NotYet("not written down".into())));
        assert!(asked(&fake, fresh, &["127.0.0.1"], silent()).is_ok());
        assert!(asked(&fake, formed(), &["provider=aws tag_key=x tag_value=y"], silent()).is_ok());
        // A server that runs does not need the store for this; one that does not know must.
        let sealed = || Store(Err(GrantError::refused("the store is sealed")));
        assert!(asked(&member, sealed(), &[], port).is_ok());
        assert_eq!(asked(&fake, sealed(), &[], port).unwrap_err().message, "argument 'mark': the store is sealed");
    }

    #[test]
    fn one_that_comes_in_time_is_waited_for() {
        let port = silent();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            TcpListener::bind(("127.0.0.1", port)).unwrap().accept().unwrap();
        });
        let args = json!({"product": "nomad", "mark": "consul/formed", "data": "/x", "servers": ["127.0.0.1"], "port": port, "wait": 20});
        let secrets: Arc<dyn Grants> = Arc::new(formed());
        let host = Fake::new();
        assert!(plan(&call("cluster_loss", args), &Cx { host: &host, facts: &Value::Null, secrets: &secrets }).is_ok());
        late.join().unwrap();
    }

    #[test]
    fn addresses_have_many_forms() {
        for (given, wanted) in [
            ("10.0.0.2", "10.0.0.2:8300"),
            ("10.0.0.2:8301", "10.0.0.2:8300"),
            ("fd00::2", "[fd00::2]:8300"),
            ("[fd00::2]:8301", "[fd00::2]:8300"),
            ("[fd00::2]", "[fd00::2]:8300"),
            ("consul-1.example.com", "consul-1.example.com:8300"),
        ] {
            assert_eq!(at(given, 8300), wanted);
        }
    }
}
