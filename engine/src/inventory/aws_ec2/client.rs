//! EC2 through its SDK. Only this file and `attributes` name `aws-sdk-ec2`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    config::ProvideCredentials as _,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    types::Filter,
};
use tokio::sync::Semaphore;

use super::{
    attributes::from_sdk,
    query::{Account, Ec2Error, FilterSet, Found, Instance, Query},
};
use crate::modules::http::cause;

/// Attempts per call. The waits between them double, with jitter, from half a second up to [`MAX_BACKOFF`].
const ATTEMPTS: u32 = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
/// Calls in flight over all regions.
const PARALLEL_CALLS: usize = 16;
/// Where regions are asked for when nothing says another one.
const FIRST_REGION: &str = "us-east-1";

static CALLS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(PARALLEL_CALLS));

/// Finds instances: the same code for inventory files and for an agent that looks for its peers. Regions and filter
/// sets are asked in parallel, page by page; throttled calls wait and try again.
pub async fn discover(query: &Query) -> Result<Found, Ec2Error> {
    let config = sdk_config(&query.account, "DescribeInstances").await?;
    discover_with(&config, query).await
}

async fn discover_with(config: &SdkConfig, query: &Query) -> Result<Found, Ec2Error> {
    let regions =
        if query.regions.is_empty() { all_regions(config, &query.account).await? } else { query.regions.clone() };
    let mut tasks = tokio::task::JoinSet::new();
    let everything = vec![FilterSet::new()];
    let include = if query.include.is_empty() { &everything } else { &query.include };
    let account = Arc::new(query.account.clone());
    for region in &regions {
        let client = client(config, region);
        for (set, excluded) in include.iter().map(|set| (set, false)).chain(query.exclude.iter().map(|set| (set, true)))
        {
            let (client, region, set, account) = (client.clone(), region.clone(), set.clone(), account.clone());
            tasks.spawn(async move {
                let _slot = CALLS.acquire().await;
                (region.clone(), excluded, describe(&client, &region, &set, &account).await)
            });
        }
    }
    let mut found = Found::default();
    let mut wanted: BTreeMap<String, Instance> = BTreeMap::new();
    let mut unwanted: HashSet<String> = HashSet::new();
    while let Some(done) = tasks.join_next().await {
        let (region, excluded, result) = done.map_err(|e| Ec2Error::Unreachable {
            call: "DescribeInstances".into(),
            region: "some region".into(),
            message: e.to_string(),
        })?;
        match result {
            Ok(instances) if excluded => unwanted.extend(instances.into_iter().map(|i| i.id)),
            Ok(instances) => wanted.extend(instances.into_iter().map(|i| (i.id.clone(), i))),
            Err(e @ Ec2Error::Denied { .. }) if !query.strict_permissions => {
                found.warnings.push(format!("{region} is left out: {e}"));
            }
            Err(e) => return Err(e),
        }
    }
    found.warnings.sort();
    found.warnings.dedup();
    found.instances = wanted.into_values().filter(|i| !unwanted.contains(&i.id)).collect();
    Ok(found)
}

/// What an instance has printed to its console so far; none where it has not printed (or AWS has not stored) any yet.
pub async fn console_output(account: &Account, region: &str, instance_id: &str) -> Result<Option<String>, Ec2Error> {
    use base64::Engine as _;
    let call = "GetConsoleOutput";
    let config = sdk_config(account, call).await?;
    let output = client(&config, region)
        .get_console_output()
        .instance_id(instance_id)
        .send()
        .await
        .map_err(|e| failed(call, region, account, &e))?;
    let Some(text) = output.output() else { return Ok(None) };
    let compact: String = text.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(compact).map_err(|e| Ec2Error::Api {
        call: call.into(),
        region: region.into(),
        account: account.to_string(),
        code: "InvalidOutput".into(),
        message: format!("the console output is not base64: {e}"),
    })?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|s| !s.is_empty()))
}

/// Regions, credentials and retries as the account wants them. Credentials are asked for at once, so that what is
/// wrong with them is told as such.
async fn sdk_config(account: &Account, call: &str) -> Result<SdkConfig, Ec2Error> {
    let retry = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(FIRST_BACKOFF)
        .with_max_backoff(MAX_BACKOFF);
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).retry_config(retry).timeout_config(timeouts);
    if let Some(profile) = &account.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(url) = &account.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    let mut config = loader.load().await;
    let missing =
        |reason: String| Ec2Error::NoCredentials { call: call.to_owned(), account: account.to_string(), reason };
    let provider = config.credentials_provider().ok_or_else(|| missing("nothing provides them".into()))?;
    provider.provide_credentials().await.map_err(|e| missing(no_credentials(&e)))?;
    if let Some(role) = &account.assume_role_arn {
        let region = config.region().cloned().unwrap_or(Region::from_static(FIRST_REGION));
        let provider = aws_config::sts::AssumeRoleProvider::builder(role)
            .session_name("rollcall-inventory")
            .region(region)
            .configure(&config)
            .build()
            .await;
        provider.provide_credentials().await.map_err(|e| Ec2Error::AssumeRole {
            role: role.clone(),
            account: Account { assume_role_arn: None, ..account.clone() }.to_string(),
            message: cause(&e),
        })?;
        config = config
            .into_builder()
            .credentials_provider(aws_sdk_ec2::config::SharedCredentialsProvider::new(provider))
            .build();
    }
    Ok(config)
}

fn client(config: &SdkConfig, region: &str) -> Client {
    let config = aws_sdk_ec2::config::Builder::from(config).region(Region::new(region.to_owned())).build();
    Client::from_conf(config)
}

async fn all_regions(config: &SdkConfig, account: &Account) -> Result<Vec<String>, Ec2Error> {
    let first = config.region().map_or(FIRST_REGION, Region::as_ref).to_owned();
    let answer = client(config, &first)
        .describe_regions()
        .send()
        .await
        .map_err(|e| failed("DescribeRegions", &first, account, &e))?;
    let mut regions: Vec<String> = answer.regions().iter().filter_map(|r| r.region_name()).map(str::to_owned).collect();
    regions.sort();
    Ok(regions)
}

async fn describe(
    client: &Client,
    region: &str,
    set: &FilterSet,
    account: &Account,
) -> Result<Vec<Instance>, Ec2Error> {
    let mut filters: Vec<Filter> = set
        .iter()
        .map(|(name, values)| Filter::builder().name(name).set_values(Some(values.clone())).build())
        .collect();
    if !set.iter().any(|(name, _)| name == "instance-state-name") {
        let mut living = Filter::builder().name("instance-state-name");
        for state in ["running", "pending", "stopping", "stopped"] {
            living = living.values(state);
        }
        filters.push(living.build());
    }
    let mut pages = client.describe_instances().set_filters(Some(filters)).into_paginator().page_size(1000).send();
    let mut instances = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed("DescribeInstances", region, account, &e))?;
        for reservation in page.reservations() {
            instances.extend(reservation.instances().iter().filter_map(|i| from_sdk(i, reservation, region)));
        }
    }
    Ok(instances)
}

/// What went wrong, by kind.
fn failed<E, R>(call: &str, region: &str, account: &Account, error: &SdkError<E, R>) -> Ec2Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let (call, region, name) = (call.to_owned(), region.to_owned(), account.to_string());
    let SdkError::ServiceError(service) = error else {
        let message = cause(error);
        let chain = DisplayErrorContext(error).to_string();
        if chain.contains("credentials") {
            return Ec2Error::NoCredentials { call, account: name, reason: message };
        }
        return Ec2Error::Unreachable { call, region, message };
    };
    let code = service.err().code().unwrap_or("unknown error").to_owned();
    let message = service.err().message().unwrap_or("no message").to_owned();
    match code.as_str() {
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            let permission = permission_in(&message).unwrap_or_else(|| format!("ec2:{call}"));
            Ec2Error::Denied { permission, call, region, account: name, message }
        }
        "RequestExpired"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "AuthFailure"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "OptInRequired" => Ec2Error::Refused { call, region, account: name, code, message },
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "TooManyRequestsException" => {
            Ec2Error::Throttled { call, region, account: name, attempts: ATTEMPTS }
        }
        _ => Ec2Error::Api { call, region, account: name, code, message },
    }
}

/// `ec2:DescribeInstances` out of AWS's `… is not authorized to perform: ec2:DescribeInstances because …`.
fn permission_in(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("perform: ")?;
    let word = rest.split_whitespace().next()?.trim_end_matches(['.', ',']);
    word.contains(':').then(|| word.to_owned())
}

/// Why no provider had any, in a few words: the SDK lists all it has tried, over several lines.
fn no_credentials(error: &dyn std::error::Error) -> String {
    let chain = DisplayErrorContext(error).to_string();
    let line = |part: &str| chain.contains(part);
    if line("was not defined") {
        "the AWS configuration has no such profile".to_owned()
    } else if line("no credentials found in chain") {
        "neither the environment nor a profile nor this machine's role has any".to_owned()
    } else if chain.to_lowercase().contains("sso") || line("cached token") {
        format!("the SSO session is not logged in, or has expired ({})", cause(error))
    } else {
        cause(error)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
