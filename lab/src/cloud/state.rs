//! What the API says, read from the API, and the one place that makes hosts follow it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError, RwLock};

use anyhow::Context as _;
use base64::Engine as _;
use indexmap::IndexMap;
use ipnet::Ipv4Net;
use tokio::sync::Mutex;

use super::moto::{Api, ApiError};
use super::xml::Element;
use super::{Hypervisor, Instance, State};

/// [`Hypervisor`] behind a pointer.
trait Follow: Send + Sync {
    fn reconcile<'a>(
        &'a self,
        instances: &'a [Instance],
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;
    fn console(&self, id: &str) -> anyhow::Result<String>;
}

impl<H: Hypervisor> Follow for H {
    fn reconcile<'a>(
        &'a self,
        instances: &'a [Instance],
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>> {
        Box::pin(Hypervisor::reconcile(self, instances))
    }

    fn console(&self, id: &str) -> anyhow::Result<String> {
        Hypervisor::console(self, id)
    }
}

/// What never changes in the life of an instance, or only by a call that makes us read it again.
#[derive(Debug, Clone, Default)]
struct Fixed {
    image: String,
    public_keys: Vec<String>,
    user_data: Option<Vec<u8>>,
}

/// Shared by the proxy, the metadata service and the timer.
pub(crate) struct Shared {
    pub(crate) api: Api,
    subnet: Ipv4Net,
    hypervisor: Box<dyn Follow>,
    regions: SyncMutex<BTreeSet<String>>,
    instances: RwLock<Arc<Vec<Instance>>>,
    /// Held while hosts are made to follow: one at a time.
    turn: Mutex<HashMap<String, Fixed>>,
    /// What went wrong last time, if something did.
    standing: SyncMutex<Option<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("api", &self.api).field("subnet", &self.subnet).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        api: Api,
        subnet: Ipv4Net,
        regions: BTreeSet<String>,
        hypervisor: Arc<impl Hypervisor + 'static>,
    ) -> Self {
        Self {
            api,
            subnet,
            hypervisor: Box::new(Handle(hypervisor)),
            regions: SyncMutex::new(regions),
            instances: RwLock::default(),
            turn: Mutex::default(),
            standing: SyncMutex::default(),
        }
    }

    /// What the API said when it was asked last.
    pub(crate) fn instances(&self) -> Arc<Vec<Instance>> {
        Arc::clone(&self.instances.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The instance with that address. One that is stopped may still ask: it is shutting down.
    pub(crate) fn by_address(&self, address: Ipv4Addr) -> Option<Instance> {
        let found = |instance: &&Instance| instance.state != State::Terminated && instance.address == address;
        self.instances().iter().find(found).cloned()
    }

    /// A region that somebody used: it is watched from now on.
    pub(crate) fn watch(&self, region: &str) {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if !regions.contains(region) {
            regions.insert(region.to_owned());
        }
    }

    pub(crate) fn console(&self, id: &str) -> anyhow::Result<String> {
        self.hypervisor.console(id)
    }

    /// The host of this running instance has powered itself off.
    pub(crate) async fn powered_off(&self, id: &str) -> anyhow::Result<()> {
        let instances = self.instances();
        let instance =
            instances.iter().find(|instance| instance.id == id).with_context(|| format!("no instance {id}"))?;
        let asked = [("InstanceId", id), ("Attribute", "instanceInitiatedShutdownBehavior")];
        let answer = self.api.ec2(&instance.region, "DescribeInstanceAttribute", &asked).await?;
        let action = match answer.at(&["instanceInitiatedShutdownBehavior", "value"]) {
            Some("terminate") => "TerminateInstances",
            _ => "StopInstances",
        };
        self.api.ec2(&instance.region, action, &[("InstanceId.1", id)]).await?;
        self.refresh(false).await
    }

    /// Starts this stopped instance through the API.
    pub(crate) async fn start_instance(&self, id: &str) -> anyhow::Result<()> {
        let instances = self.instances();
        let instance =
            instances.iter().find(|instance| instance.id == id).with_context(|| format!("no instance {id}"))?;
        self.api.ec2(&instance.region, "StartInstances", &[("InstanceId.1", id)]).await?;
        self.refresh(false).await
    }

    /// Waits for changes that are under way.
    pub(crate) async fn settled(&self) {
        drop(self.turn.lock().await);
    }

    /// Reads every watched region and makes the hosts follow. `afresh` also reads again what seldom changes.
    ///
    /// An instance whose address lies outside the lab cannot become a host: it is terminated in the API, so that
    /// the API stays true, and the error says so.
    pub(crate) async fn refresh(&self, afresh: bool) -> anyhow::Result<()> {
        let mut fixed = self.turn.lock().await;
        let result = self.follow(&mut fixed, afresh).await;
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) =
            result.as_ref().err().map(|error| format!("{error:#}"));
        result
    }

    /// What keeps hosts from following, if something does.
    pub(crate) fn standing(&self) -> Option<String> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Switches running instances off and on again. The API has no state for it.
    pub(crate) async fn reboot(&self, ids: &[String]) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let now = self.instances();
        let mut off = now.to_vec();
        for instance in off.iter_mut().filter(|instance| instance.state == State::Running && ids.contains(&instance.id))
        {
            instance.state = State::Stopped;
        }
        self.hypervisor.reconcile(&off).await.context("hosts cannot shut down")?;
        self.hypervisor.reconcile(&now).await.context("hosts cannot boot again")
    }

    async fn follow(&self, fixed: &mut HashMap<String, Fixed>, afresh: bool) -> anyhow::Result<()> {
        if afresh {
            fixed.clear();
        }
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut instances = Vec::new();
        for region in &regions {
            for described in self.describe(region).await? {
                instances.push(self.instance(region, &described, fixed).await?);
            }
        }
        let known: HashSet<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
        fixed.retain(|id, _| known.contains(id.as_str()));
        let strangers = self.evict(&mut instances).await?;
        *self.instances.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(instances.clone());
        self.hypervisor.reconcile(&instances).await.context("hosts cannot follow the EC2 API")?;
        anyhow::ensure!(strangers.is_empty(), "{}", strangers.join("; "));
        Ok(())
    }

    /// All pages of DescribeInstances.
    async fn describe(&self, region: &str) -> Result<Vec<Element>, ApiError> {
        let mut found = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let page = match &next {
                Some(token) => self.api.ec2(region, "DescribeInstances", &[("NextToken", token)]).await?,
                None => self.api.ec2(region, "DescribeInstances", &[]).await?,
            };
            for reservation in page.items("reservationSet") {
                found.extend(reservation.items("instancesSet").cloned());
            }
            match page.at(&["nextToken"]) {
                Some(token) => next = Some(token.to_owned()),
                None => return Ok(found),
            }
        }
    }

    async fn instance(
        &self,
        region: &str,
        described: &Element,
        fixed: &mut HashMap<String, Fixed>,
    ) -> anyhow::Result<Instance> {
        let text = |path: &[&str]| described.at(path).unwrap_or_default().to_owned();
        let id = text(&["instanceId"]);
        anyhow::ensure!(!id.is_empty(), "an instance without id in the answer to DescribeInstances in {region}");
        let state = match text(&["instanceState", "name"]).as_str() {
            "pending" | "running" => State::Running,
            "stopping" | "stopped" => State::Stopped,
            "shutting-down" | "terminated" => State::Terminated,
            other => anyhow::bail!("instance {id} is in state `{other}`, which a host cannot be in"),
        };
        let tags: IndexMap<String, String> = described
            .items("tagSet")
            .map(|tag| {
                let part = |name| tag.at(&[name]).unwrap_or_default().to_owned();
                (part("key"), part("value"))
            })
            .collect();
        let image_id = text(&["imageId"]);
        let key_name = described.at(&["keyName"]).map(str::to_owned);
        let rest = match fixed.get(&id) {
            Some(known) => known.clone(),
            None if state == State::Terminated => Fixed { image: image_id.clone(), ..Fixed::default() },
            None => {
                let read = self.fixed(region, &id, &image_id, key_name.as_deref()).await?;
                fixed.insert(id.clone(), read.clone());
                read
            }
        };
        Ok(Instance {
            name: tags.get("Name").filter(|name| !name.is_empty()).unwrap_or(&id).clone(),
            address: described
                .at(&["privateIpAddress"])
                .and_then(|address| address.parse().ok())
                .unwrap_or(Ipv4Addr::UNSPECIFIED),
            zone: text(&["placement", "availabilityZone"]),
            region: region.to_owned(),
            instance_type: text(&["instanceType"]),
            launch_time: text(&["launchTime"]),
            image: rest.image,
            public_keys: rest.public_keys,
            user_data: rest.user_data,
            id,
            state,
            image_id,
            tags,
            key_name,
        })
    }

    /// Reads what [`Fixed`] holds.
    async fn fixed(&self, region: &str, id: &str, image_id: &str, key: Option<&str>) -> anyhow::Result<Fixed> {
        let images = self
            .api
            .ec2(region, "DescribeImages", &[("Filter.1.Name", "image-id"), ("Filter.1.Value.1", image_id)])
            .await?;
        let image = images.items("imagesSet").find_map(|image| image.at(&["name"])).unwrap_or(image_id).to_owned();
        let mut public_keys = Vec::new();
        if let Some(key) = key {
            let asked = [("IncludePublicKey", "true"), ("Filter.1.Name", "key-name"), ("Filter.1.Value.1", key)];
            let pairs = self.api.ec2(region, "DescribeKeyPairs", &asked).await?;
            public_keys.extend(pairs.items("keySet").filter_map(|pair| pair.at(&["publicKey"])).map(str::to_owned));
        }
        let attribute =
            self.api.ec2(region, "DescribeInstanceAttribute", &[("InstanceId", id), ("Attribute", "userData")]).await?;
        let user_data = attribute
            .at(&["userData", "value"])
            .map(|encoded| {
                let joined: String = encoded.split_whitespace().collect();
                base64::engine::general_purpose::STANDARD.decode(joined)
            })
            .transpose()
            .with_context(|| format!("the user-data of {id} is not base64"))?;
        Ok(Fixed { image, public_keys, user_data })
    }

    /// Terminates what lies outside the lab's subnet; says why for each.
    async fn evict(&self, instances: &mut Vec<Instance>) -> Result<Vec<String>, ApiError> {
        let (inside, outside) = std::mem::take(instances).into_iter().partition(|instance: &Instance| {
            instance.state == State::Terminated || self.subnet.contains(&instance.address)
        });
        *instances = inside;
        let mut told = Vec::new();
        for mut stranger in outside {
            self.api.ec2(&stranger.region, "TerminateInstances", &[("InstanceId.1", &stranger.id)]).await?;
            told.push(format!(
                "instance {} ({}) has the address {}, outside the lab's network {}, and was terminated: launch it into a subnet of the lab's VPC",
                stranger.id, stranger.name, stranger.address, self.subnet
            ));
            stranger.state = State::Terminated;
            instances.push(stranger);
        }
        Ok(told)
    }
}

/// Lets a shared hypervisor be a boxed one.
struct Handle<H>(Arc<H>);

impl<H: Hypervisor> Hypervisor for Handle<H> {
    fn reconcile(&self, instances: &[Instance]) -> impl Future<Output = anyhow::Result<()>> + Send {
        self.0.reconcile(instances)
    }

    fn console(&self, id: &str) -> anyhow::Result<String> {
        self.0.console(id)
    }
}
