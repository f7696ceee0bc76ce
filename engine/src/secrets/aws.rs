//! The `aws-secretsmanager` store: one secret of AWS Secrets Manager for each name.

use std::{
    error::Error,
    io,
    time::{Duration, Instant},
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_secretsmanager::{
    Client,
    config::ProvideCredentials as _,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    types::{Filter, FilterNameStringType},
};
use tokio::sync::OnceCell;

use super::{
    Created, Name, Secret, SecretStore, Stamp, StoreError, check_value, ownership::Rule, probe, settings::Aws,
};
use crate::modules::http::cause;

/// Tries of a read. Writes are tried once: whether to repeat one is up to who knows what it was for.
const READ_TRIES: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long AWS may take until a name is free whose secret was deleted without recovery: it does so in its own time.
const FREED: Duration = Duration::from_secs(20);
/// Between two looks at that.
const PAUSE: Duration = Duration::from_millis(500);

/// The store.
#[derive(Debug)]
pub struct AwsStore {
    store: String,
    settings: Aws,
    /// What every name begins with, with a slash at its end.
    base: String,
    /// Instead of what the environment and the profile say.
    config: Option<SdkConfig>,
    clients: OnceCell<Clients>,
}

#[derive(Debug)]
struct Clients {
    reads: Client,
    writes: Client,
}

/// What a call is, for what goes wrong with it.
#[derive(Clone, Copy)]
struct Call<'a> {
    /// As AWS names it.
    action: &'static str,
    /// The name in AWS.
    name: &'a str,
    writes: bool,
}

/// What AWS says, by kind: where the caller has an answer to it, and where not.
enum Wrong {
    NotFound,
    Exists,
    /// The name is that of a secret that is scheduled for deletion.
    Deleted,
    Other(StoreError),
}

impl AwsStore {
    /// The store of a cluster. Nothing is asked before it is used.
    pub fn new(cluster: &str, settings: Aws) -> Self {
        let base = format!("{}/{cluster}/", settings.prefix);
        let region = settings.region.as_deref().map(|r| format!(" in {r}")).unwrap_or_default();
        let store = format!("AWS Secrets Manager{region} ({base})");
        Self { store, settings, base, config: None, clients: OnceCell::new() }
    }

    /// The store of a cluster, with region, credentials and endpoint from a configuration that is at hand.
    pub fn with_config(cluster: &str, settings: Aws, config: SdkConfig) -> Self {
        Self { config: Some(config), ..Self::new(cluster, settings) }
    }

    fn full(&self, name: &Name) -> String {
        format!("{}{name}", self.base)
    }

    /// Whether a deleted secret of this name cannot be brought back, so that the name is free again.
    fn goes_at_once(&self, name: &Name) -> bool {
        // Probes have names of their own, which nobody wants back.
        let is_probe = name.parts().next() == Some(probe::PART);
        self.settings.recovery_days == 0 || is_probe || Rule::of(name).is_some_and(|rule| rule.remade)
    }

    async fn clients(&self) -> Result<&Clients, StoreError> {
        self.clients.get_or_try_init(|| self.connect()).await
    }

    /// Region and credentials are looked for at once, so that what is wrong with them is told as such.
    async fn connect(&self) -> Result<Clients, StoreError> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(self.settings.timeout))
            .operation_timeout(self.settings.timeout)
            .build();
        let config = match &self.config {
            Some(config) => config.clone(),
            None => self.load().await,
        };
        let config = config.into_builder().timeout_config(timeouts).build();
        if config.region().is_none() {
            return Err(self.impossible(
                "no region is set".to_owned(),
                "'region' of the store, AWS_REGION, or the region of the profile".to_owned(),
            ));
        }
        let no_credentials = |why: String| StoreError::Denied {
            store: self.store.clone(),
            call: "log in".to_owned(),
            why: format!("there are no AWS credentials: {why}"),
        };
        let provider =
            config.credentials_provider().ok_or_else(|| no_credentials("nothing provides them".to_owned()))?;
        provider.provide_credentials().await.map_err(|e| no_credentials(cause(&e)))?;
        let client = |tries: u32| {
            let retry = RetryConfig::standard().with_max_attempts(tries);
            Client::from_conf(aws_sdk_secretsmanager::config::Builder::from(&config).retry_config(retry).build())
        };
        Ok(Clients { reads: client(READ_TRIES), writes: client(1) })
    }

    /// What every AWS program goes by, and the settings before that.
    async fn load(&self) -> SdkConfig {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(profile) = &self.settings.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &self.settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &self.settings.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        loader.load().await
    }

    fn impossible(&self, why: String, hint: String) -> StoreError {
        StoreError::Impossible { store: self.store.clone(), why, hint: Some(hint) }
    }

    fn deleted(&self, name: &Name) -> StoreError {
        self.impossible(
            format!("'{name}' is scheduled for deletion, and AWS keeps its name until then"),
            format!(
                "bring it back: aws secretsmanager restore-secret --secret-id {0}, or free the name: \
                 aws secretsmanager delete-secret --force-delete-without-recovery --secret-id {0}",
                self.full(name)
            ),
        )
    }

    /// What became of a failed call.
    fn wrong<E, R>(&self, call: Call<'_>, error: SdkError<E, R>) -> Wrong
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let SdkError::ServiceError(service) = &error else { return Wrong::Other(self.lost(call, error)) };
        let code = service.err().code().unwrap_or("unknown error");
        let said = service.err().message().unwrap_or("no message");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let (store, asked) = (self.store.clone(), format!("{} {}", call.action, call.name));
        match code {
            "ResourceNotFoundException" => Wrong::NotFound,
            "ResourceExistsException" => Wrong::Exists,
            "InvalidRequestException" if said.contains("deletion") || said.contains("marked deleted") => Wrong::Deleted,
            "AccessDeniedException" | "AccessDenied" => Wrong::Other(self.denied(call, &said)),
            "ThrottlingException" | "Throttling" | "RequestLimitExceeded" | "TooManyRequestsException" => {
                let hint = Some("wait and try again, or have the account's limit raised".to_owned());
                Wrong::Other(StoreError::Unavailable { store, why: format!("it takes no more calls now ({code})"), hint })
            }
            "InternalServiceError" | "InternalFailure" | "ServiceUnavailable" | "InternalServerError" => {
                Wrong::Other(self.lost(call, error))
            }
            "DecryptionFailure" | "EncryptionFailure" => Wrong::Other(self.impossible(
                format!("{asked}: {code}: {said}"),
                "who asks needs kms:Decrypt and kms:GenerateDataKey on the secret's key, and the key must be enabled"
                    .to_owned(),
            )),
            "LimitExceededException" => Wrong::Other(self.impossible(
                format!("{asked}: {said}"),
                "the account's quota of secrets is used up".to_owned(),
            )),
            "ExpiredTokenException" | "UnrecognizedClientException" | "InvalidClientTokenId"
            | "InvalidSignatureException" | "SignatureDoesNotMatch" | "MissingAuthenticationTokenException" => {
                Wrong::Other(StoreError::Denied { store, call: asked, why: format!("{code}: {said}") })
            }
            _ => Wrong::Other(StoreError::Impossible { store, why: format!("{asked}: {code}: {said}"), hint: None }),
        }
    }

    /// The permission that is missing, as a policy names it.
    fn denied(&self, call: Call<'_>, said: &str) -> StoreError {
        let resource = said.split_once("on resource: ").and_then(|(_, rest)| rest.split_whitespace().next());
        let resource = resource.map_or_else(
            || format!("arn:aws:secretsmanager:*:*:secret:{}-*", call.name),
            |text| text.trim_end_matches(['.', ',']).to_owned(),
        );
        StoreError::Denied {
            store: self.store.clone(),
            call: format!("{} {}", call.action, call.name),
            why: format!("the policy lacks secretsmanager:{} on {resource} ({said})", call.action),
        }
    }

    /// A call whose answer did not come, or says that AWS itself failed.
    fn lost<E, R>(&self, call: Call<'_>, error: SdkError<E, R>) -> StoreError
    where
        E: Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let store = self.store.clone();
        let asked = format!("{} {}", call.action, call.name);
        let why = format!("{asked}: {}", cause(&error));
        if DisplayErrorContext(&error).to_string().contains("credentials") {
            return StoreError::Denied { store, call: asked, why };
        }
        if call.writes && !never_sent(&error) {
            return StoreError::Unknown { store, call: asked, source: Box::new(error) };
        }
        let hint = self.settings.endpoint.as_ref().map(|endpoint| format!("is {endpoint} up?"));
        StoreError::Unavailable { store, why, hint }
    }

    fn other(&self, name: &Name, call: Call<'_>, wrong: Wrong) -> StoreError {
        match wrong {
            Wrong::Other(error) => error,
            Wrong::Deleted => self.deleted(name),
            Wrong::NotFound | Wrong::Exists => StoreError::Unavailable {
                store: self.store.clone(),
                why: format!("somebody else changes '{name}' ({} {})", call.action, call.name),
                hint: None,
            },
        }
    }

    async fn create_once(&self, name: &Name, value: &Secret) -> Result<Created, Wrong> {
        let full = match self.create_call(name, value).await.map_err(Wrong::Other)? {
            Ok(()) => return Ok(Created::New),
            Err((Wrong::Exists, full)) => full,
            Err((wrong, _)) => return Err(wrong),
        };
        // Also the answer for a name that is scheduled for deletion, from some who speak this API.
        let call = Call { action: "GetSecretValue", name: &full, writes: false };
        let reads = &self.clients().await.map_err(Wrong::Other)?.reads;
        match reads.get_secret_value().secret_id(&full).send().await {
            Ok(_) => Ok(Created::Exists),
            Err(error) => match self.wrong(call, error) {
                Wrong::Deleted => Err(Wrong::Deleted),
                // Who may create, but not read, still learns that it is there.
                Wrong::Other(StoreError::Denied { .. }) => Ok(Created::Exists),
                wrong => Err(Wrong::Other(self.other(name, call, wrong))),
            },
        }
    }

    async fn create_call(&self, name: &Name, value: &Secret) -> Result<Result<(), (Wrong, String)>, StoreError> {
        let full = self.full(name);
        let sent = self
            .clients()
            .await?
            .writes
            .create_secret()
            .name(&full)
            .secret_string(value.expose())
            .description("Made by Rollcall")
            .set_kms_key_id(self.settings.kms_key.clone())
            .send()
            .await;
        let call = Call { action: "CreateSecret", name: &full, writes: true };
        Ok(sent.map(drop).map_err(|e| (self.wrong(call, e), full.clone())))
    }
}

/// The connection was never there, so that nothing can have happened.
fn never_sent<E: Error + 'static, R: std::fmt::Debug>(error: &SdkError<E, R>) -> bool {
    if matches!(error, SdkError::ConstructionFailure(_)) {
        return true;
    }
    let SdkError::DispatchFailure(_) = error else { return false };
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(cause) = next {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let unreachable = [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::AddrNotAvailable,
        ];
        if kind.is_some_and(|kind| unreachable.contains(&kind)) || cause.to_string().contains("dns error") {
            return true;
        }
        next = cause.source();
    }
    false
}

#[async_trait::async_trait]
impl SecretStore for AwsStore {
    fn describe(&self) -> String {
        self.store.clone()
    }

    fn patience(&self) -> Duration {
        self.settings.patience
    }

    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError> {
        check_value(&self.store, name, value)?;
        let until = Instant::now() + FREED;
        loop {
            match self.create_once(name, value).await {
                Err(Wrong::Deleted) if self.goes_at_once(name) && Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                made => {
                    let call = Call { action: "CreateSecret", name: &self.full(name), writes: true };
                    return made.map_err(|wrong| self.other(name, call, wrong));
                }
            }
        }
    }

    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
        Ok(self.get_dated(name).await?.map(|(value, _)| value))
    }

    async fn get_dated(&self, name: &Name) -> Result<Option<(Secret, Option<Stamp>)>, StoreError> {
        let full = self.full(name);
        let call = Call { action: "GetSecretValue", name: &full, writes: false };
        match self.clients().await?.reads.get_secret_value().secret_id(&full).send().await {
            Ok(answer) => match answer.secret_string {
                Some(text) => {
                    let made = answer.created_date.and_then(|time| time.to_millis().ok());
                    Ok(Some((Secret::new(text), made.map(|made| Stamp { made, version: None }))))
                }
                None => Err(self.impossible(
                    format!("'{name}' holds bytes, not text"),
                    format!("somebody else wrote it; write it anew: controller secret put {name}"),
                )),
            },
            Err(error) => match self.wrong(call, error) {
                Wrong::NotFound | Wrong::Deleted => Ok(None),
                wrong => Err(self.other(name, call, wrong)),
            },
        }
    }

    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError> {
        check_value(&self.store, name, value)?;
        let full = self.full(name);
        let call = Call { action: "PutSecretValue", name: &full, writes: true };
        let client = &self.clients().await?.writes;
        let again = || client.put_secret_value().secret_id(&full).secret_string(value.expose()).send();
        let wrong = match again().await {
            Ok(_) => return Ok(()),
            Err(error) => self.wrong(call, error),
        };
        if !matches!(wrong, Wrong::NotFound) {
            return Err(self.other(name, call, wrong));
        }
        match self.create_call(name, value).await? {
            Ok(()) => Ok(()),
            // Somebody has just made it.
            Err((Wrong::Exists, _)) => {
                again().await.map(drop).map_err(|error| self.other(name, call, self.wrong(call, error)))
            }
            Err((wrong, _)) => Err(self.other(name, Call { action: "CreateSecret", ..call }, wrong)),
        }
    }

    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        let full = self.full(name);
        let call = Call { action: "DeleteSecret", name: &full, writes: true };
        let mut request = self.clients().await?.writes.delete_secret().secret_id(&full);
        if self.goes_at_once(name) {
            request = request.force_delete_without_recovery(true);
        } else {
            request = request.recovery_window_in_days(self.settings.recovery_days);
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => match self.wrong(call, error) {
                Wrong::NotFound | Wrong::Deleted => Ok(()),
                wrong => Err(self.other(name, call, wrong)),
            },
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Name>, StoreError> {
        let full = format!("{}{prefix}", self.base);
        let call = Call { action: "ListSecrets", name: &full, writes: false };
        let filter = Filter::builder().key(FilterNameStringType::Name).values(&full).build();
        let mut pages = self.clients().await?.reads.list_secrets().filters(filter).into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| match self.wrong(call, error) {
                Wrong::Other(error) => error,
                _ => self.impossible(format!("it does not list '{full}'"), "try again".to_owned()),
            })?;
            // AWS's filter is wider than a prefix; and what has another name was not written by us.
            let found = page.secret_list().iter().filter_map(|entry| entry.name()?.strip_prefix(&self.base));
            names.extend(found.filter(|name| name.starts_with(prefix)).filter_map(|name| Name::new(name).ok()));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        super::probe::probe(self).await
    }
}
