//! What is asked of EC2 and what comes back; free of the SDK, so that the rest of the program does not depend on it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// By which credentials an account is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Account {
    /// A profile of the AWS configuration; none: what the environment says.
    pub profile: Option<String>,
    /// A role to take on by STS.
    pub assume_role_arn: Option<String>,
    /// Another endpoint than AWS's own.
    pub endpoint_url: Option<String>,
}

/// Filters that must all hold: name and accepted values.
pub type FilterSet = Vec<(String, Vec<String>)>;

/// Instances to find: those of any `include` set and of no `exclude` set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// The account.
    pub account: Account,
    /// Regions; none: all that the account has.
    pub regions: Vec<String>,
    /// Alternatives; none: every instance that is not terminated.
    pub include: Vec<FilterSet>,
    /// Instances to leave out.
    pub exclude: Vec<FilterSet>,
    /// False: a region that may not be asked is left out, with a warning.
    pub strict_permissions: bool,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-0123…`
    pub id: String,
    /// The region that told of it.
    pub region: String,
    /// Its attributes in snake case (`private_ip_address`, `placement`, …); `tags` is a map of strings.
    pub attributes: Map<String, Value>,
}

impl Instance {
    /// The value of a tag.
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.attributes.get("tags")?.get(name)?.as_str()
    }

    /// An attribute that is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name)?.as_str().filter(|s| !s.is_empty())
    }
}

/// What a query found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Instances, sorted by id.
    pub instances: Vec<Instance>,
    /// Regions that were left out, as lowercase fragments.
    pub warnings: Vec<String>,
}

/// Why EC2 did not answer as wanted. Every variant names the call and by which credentials it was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ec2Error {
    /// Nothing to sign with.
    #[error("no AWS credentials for {call} ({account}): {reason}")]
    NoCredentials {
        /// The call that needed them.
        call: String,
        /// Profile or role.
        account: String,
        /// What the providers said.
        reason: String,
    },
    /// Credentials that are not, or no longer, good.
    #[error("AWS refused the credentials at {call} in {region} ({account}): {code}: {message}")]
    Refused {
        /// The call.
        call: String,
        /// Where.
        region: String,
        /// Profile or role.
        account: String,
        /// AWS's code.
        code: String,
        /// AWS's text.
        message: String,
    },
    /// A permission is missing.
    #[error("the permission {permission} is missing for {call} in {region} ({account}): {message}")]
    Denied {
        /// `ec2:DescribeInstances`.
        permission: String,
        /// The call.
        call: String,
        /// Where.
        region: String,
        /// Profile or role.
        account: String,
        /// AWS's text.
        message: String,
    },
    /// The role could not be taken on.
    #[error("cannot assume the role {role} ({account}): {message}")]
    AssumeRole {
        /// Its ARN.
        role: String,
        /// By what.
        account: String,
        /// What STS said.
        message: String,
    },
    /// Still throttled after all attempts.
    #[error("AWS throttles {call} in {region} ({account}); gave up after {attempts} attempts")]
    Throttled {
        /// The call.
        call: String,
        /// Where.
        region: String,
        /// Profile or role.
        account: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The endpoint does not answer.
    #[error("cannot reach EC2 for {call} in {region}: {message}")]
    Unreachable {
        /// The call.
        call: String,
        /// Where.
        region: String,
        /// Why.
        message: String,
    },
    /// Anything else that the API says.
    #[error("{call} in {region} failed ({account}): {code}: {message}")]
    Api {
        /// The call.
        call: String,
        /// Where.
        region: String,
        /// Profile or role.
        account: String,
        /// AWS's code.
        code: String,
        /// AWS's text.
        message: String,
    },
    /// This program was built without EC2.
    #[error("this build does not know EC2 (feature `ec2` is off)")]
    NotBuilt,
}

impl Ec2Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoCredentials { .. } => {
                "name a profile in the file (profile: NAME), set AWS_PROFILE, or log in: aws sso login".to_owned()
            }
            Self::Refused { code, .. } if code.contains("Expired") => {
                "the token has expired: log in again (aws sso login), or renew the session".to_owned()
            }
            Self::Refused { .. } => "look at the keys, and at this machine's clock".to_owned(),
            Self::Denied { permission, .. } => format!("allow {permission} in a policy of that user or role"),
            Self::AssumeRole { .. } => {
                "the role's trust policy must name this user, and the user needs sts:AssumeRole".to_owned()
            }
            Self::Throttled { .. } => "ask fewer regions, or turn the cache on (cache: true)".to_owned(),
            Self::Unreachable { .. } => {
                "look at the region's name, the network, endpoint_url and AWS_ENDPOINT_URL".to_owned()
            }
            Self::Api { code, .. } if code == "InvalidParameterValue" => "look at 'filters' in the file".to_owned(),
            Self::Api { .. } | Self::NotBuilt => return None,
        })
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.profile {
            Some(profile) => write!(f, "profile '{profile}'")?,
            None => match std::env::var("AWS_PROFILE") {
                Ok(profile) => write!(f, "profile '{profile}' from AWS_PROFILE")?,
                Err(_) => f.write_str("default credentials")?,
            },
        }
        match &self.assume_role_arn {
            Some(role) => write!(f, ", role {role}"),
            None => Ok(()),
        }
    }
}

/// Finds instances: the same code for inventory files and for an agent that looks for its peers.
#[cfg(not(feature = "ec2"))]
pub async fn discover(_query: &Query) -> Result<Found, Ec2Error> {
    Err(Ec2Error::NotBuilt)
}
