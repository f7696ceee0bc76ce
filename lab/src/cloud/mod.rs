//! The cloud of a lab: an EC2 API, an instance metadata service, and what makes hosts follow the API's words.
//!
//! Everything here runs inside the lab's network namespace, in the supervisor's process (and one `moto_server`
//! child of it). [`start`] brings it up; dropping the returned [`Cloud`] ends it.

pub(crate) mod imds;
pub(crate) mod moto;
pub(crate) mod proxy;
pub(crate) mod seed;
mod state;
mod xml;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use indexmap::IndexMap;
use ipnet::Ipv4Net;
use tokio::task::JoinSet;

/// What the EC2 API says of an instance, reduced to what a host can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// `pending` or `running`: the host boots or is up.
    Running,
    /// `stopping` or `stopped`: the host is down, its disk stays.
    Stopped,
    /// `shutting-down` or `terminated`: the host and its disk are gone.
    Terminated,
}

/// One instance as the EC2 API describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the API's own words")]
pub(crate) struct Instance {
    /// `i-…`, unique over all regions and for ever.
    pub(crate) id: String,
    /// The tag `Name`, or the id where there is none. Not unique.
    pub(crate) name: String,
    pub(crate) state: State,
    /// Its private address, inside the lab's subnet while it runs or is stopped. `0.0.0.0` for a terminated one.
    pub(crate) address: Ipv4Addr,
    pub(crate) zone: String,
    pub(crate) region: String,
    pub(crate) instance_type: String,
    /// The name of its image where the API knows it (`debian-12`), else the image's id.
    pub(crate) image: String,
    /// `ami-…`.
    pub(crate) image_id: String,
    pub(crate) tags: IndexMap<String, String>,
    /// Name of the key pair that it was launched with.
    pub(crate) key_name: Option<String>,
    /// OpenSSH lines of that key pair; empty without one.
    pub(crate) public_keys: Vec<String>,
    pub(crate) user_data: Option<Vec<u8>>,
    /// RFC 3339, in UTC, as the API prints it.
    pub(crate) launch_time: String,
}

/// What makes real hosts of instances. The lab implements it with containers, tests with a list.
pub(crate) trait Hypervisor: Send + Sync {
    /// Makes real hosts follow: boots what runs, stops what is stopped, removes what is terminated or not listed.
    /// Returns when every change is under way (stops: done; boots: the container's process is started).
    /// Never called twice at the same time. Called about once a second, so it must be cheap when nothing changed.
    fn reconcile(&self, instances: &[Instance]) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// The host's real console output so far (host keys are printed there in cloud-init's form).
    fn console(&self, id: &str) -> anyhow::Result<String>;
}

/// A key pair of the lab file. Its private key lies in `CloudConfig::dir/keys/NAME` (0600, owned by `owner`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySpec {
    pub(crate) name: String,
}

/// One instance of the lab file, counts already expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceSpec {
    /// Becomes the tag `Name`.
    pub(crate) name: String,
    pub(crate) instance_type: String,
    /// Name of an image; registered in the API under that name.
    pub(crate) image: String,
    /// `us-west-2a`; its region is the zone without the letter.
    pub(crate) zone: String,
    /// One of the lab file's `keys`.
    pub(crate) key: Option<String>,
    /// Without `Name`.
    pub(crate) tags: IndexMap<String, String>,
    pub(crate) user_data: Option<String>,
    /// A fixed address in the zone's part of the subnet; without it the next free one from its tenth on.
    pub(crate) address: Option<Ipv4Addr>,
}

/// The user on whose behalf the lab runs: `sudo`'s invoking user, or root. Files for people belong to it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `HOME` for the programs that are built on its behalf.
    pub(crate) home: PathBuf,
}

/// Where the services listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoints {
    /// Our proxy: what `AWS_ENDPOINT_URL` names.
    pub(crate) aws: SocketAddr,
    /// The API server behind it.
    pub(crate) moto: SocketAddr,
    pub(crate) imds: SocketAddr,
    /// Release mirror (`/consul/1.22.2/…`).
    pub(crate) mirror: SocketAddr,
    /// Debian package repository.
    pub(crate) apt: SocketAddr,
}

impl Endpoints {
    /// The lab's addresses: everything on the gateway, the API server on loopback, IMDS at its real address.
    pub(crate) fn on(gateway: Ipv4Addr) -> Self {
        let at = |address: Ipv4Addr, port| SocketAddr::new(IpAddr::V4(address), port);
        Self {
            aws: at(gateway, 5000),
            moto: at(Ipv4Addr::LOCALHOST, 5001),
            imds: at(Ipv4Addr::new(169, 254, 169, 254), 80),
            mirror: at(gateway, 8080),
            apt: at(gateway, 8081),
        }
    }
}

/// Everything that [`start`] needs.
#[derive(Debug, Clone)]
pub(crate) struct CloudConfig {
    /// The lab's name.
    pub(crate) name: String,
    /// The lab's state folder: keys, logs of the services.
    pub(crate) dir: PathBuf,
    pub(crate) endpoints: Endpoints,
    /// The bridge's range: the VPC. `endpoints.aws` is usually its first address.
    pub(crate) subnet: Ipv4Net,
    /// The region of the lab file; further ones come from the zones of its instances.
    pub(crate) region: String,
    pub(crate) keys: Vec<KeySpec>,
    pub(crate) instances: Vec<InstanceSpec>,
    pub(crate) owner: Owner,
    /// What [`crate::serve::prepare`] made.
    pub(crate) prepared: crate::serve::Prepared,
    /// How often hosts are compared with the API when nobody calls it. One second in the lab.
    pub(crate) interval: Duration,
}

/// A running cloud. Dropping it ends its services.
#[derive(Debug)]
pub(crate) struct Cloud {
    shared: Arc<state::Shared>,
    /// Aborted on drop.
    tasks: JoinSet<()>,
    /// Killed on drop.
    moto: moto::Moto,
}

/// Starts the API server and every service, puts the lab file into the API, and boots what it asks for.
/// When it returns, the hosts of all running instances are under way, and whatever they may ask is there.
pub(crate) async fn start(config: CloudConfig, hypervisor: Arc<impl Hypervisor + 'static>) -> anyhow::Result<Cloud> {
    std::fs::create_dir_all(&config.dir).with_context(|| format!("cannot create {}", config.dir.display()))?;
    let moto = moto::Moto::start(&config.prepared.moto, config.endpoints.moto, &config.dir.join("moto.log")).await?;
    let api = moto::Api::new(config.endpoints.moto)?;
    seed::seed(&api, &config).await?;
    let shared = Arc::new(state::Shared::new(api, config.subnet, seed::regions(&config), hypervisor));
    let mut tasks = JoinSet::new();
    let plain = |router: Router| router.into_make_service_with_connect_info::<SocketAddr>();
    let services = [
        ("EC2 API", config.endpoints.aws, proxy::router(Arc::clone(&shared), config.endpoints.moto)?),
        ("metadata service", config.endpoints.imds, imds::router(Arc::clone(&shared) as Arc<dyn imds::Callers>)),
        ("release mirror", config.endpoints.mirror, crate::mirror::router(&config.prepared.mirror)),
        ("package repository", config.endpoints.apt, crate::mirror::router(&config.prepared.apt)),
    ];
    for (name, address, router) in services {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("the {name} cannot listen on {address}"))?;
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, plain(router)).await {
                tracing::error!(%error, "the {name} ended");
            }
        });
    }
    shared.refresh(false).await?;
    tasks.spawn(watch(Arc::clone(&shared), config.interval));
    Ok(Cloud { shared, tasks, moto })
}

/// Hosts follow also what changes without a call through the proxy. Tells each error once, not every second.
async fn watch(shared: Arc<state::Shared>, interval: Duration) {
    let mut told = None;
    loop {
        tokio::time::sleep(interval).await;
        let failed = shared.refresh(false).await.err().map(|error| format!("{error:#}"));
        if failed != told {
            match &failed {
                Some(message) => tracing::error!("{message}"),
                None => tracing::info!("hosts follow the EC2 API again"),
            }
            told = failed;
        }
    }
}

impl Cloud {
    /// Every instance that the API knows, terminated ones too, as it was read last.
    #[cfg(test)]
    pub(crate) fn instances(&self) -> Arc<Vec<Instance>> {
        self.shared.instances()
    }

    /// Tells the API that a host has powered itself off: its instance becomes stopped or terminated, as its
    /// shutdown behaviour says. Not from within [`Hypervisor::reconcile`]: it ends with a reconcile.
    pub(crate) async fn powered_off(&self, id: &str) -> anyhow::Result<()> {
        self.shared.powered_off(id).await
    }

    /// Starts a stopped instance through the API. Not from within [`Hypervisor::reconcile`]: it ends with a reconcile.
    pub(crate) async fn start_instance(&self, id: &str) -> anyhow::Result<()> {
        self.shared.start_instance(id).await
    }

    /// An error if the API server has died: all that it knew is lost, the lab cannot go on.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.moto.ended()? {
            Some(status) => anyhow::bail!("moto_server has ended ({status}){}", self.moto.last_words()),
            None => Ok(()),
        }
    }

    /// Ends the services in order. Dropping does the same, without waiting for the API server's end.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.tasks.shutdown().await;
        self.moto.stop().await
    }
}
