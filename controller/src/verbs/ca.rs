//! `controller ca`: the cluster's certificate authority.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::SystemTime};

use anyhow::{Context as _, anyhow};
use clap::{Args as ClapArgs, Subcommand};
use rollcall_engine::{
    diag::Sources,
    pki::{Authority, PkiError, authority::Certificate, date, issuer},
    secrets::{Secret, SecretStore, grants::GrantError},
};

use crate::{context::Context, exit::Exit};

/// The cluster's certificate authority: show it, bring your own, hand its certificate out.
///
/// It is made with the first certificate that a host asks for, and kept in the secrets store. Its key never leaves the store but to
/// sign.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller ca show
  controller ca import --certificate ca.pem --key ca-key.pem
  controller ca export > ca.pem && curl --cacert ca.pem https://10.0.0.7:8501/v1/status/leader")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Whom it names, its fingerprint, and until when it counts.
    Show,
    /// Its certificate, in PEM, for those who are to trust it.
    Export,
    /// Put one that you have into the store: the certificate that signs, and its key.
    Import {
        /// The certificate, PEM. One that is below another is taken as it is: hosts trust it alone.
        #[arg(long, value_name = "FILE")]
        certificate: PathBuf,
        /// Its private key, PEM, without a passphrase.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// In place of the one that is there. Hosts with a certificate of the old one and hosts with one of the new one do not talk
        /// to each other.
        #[arg(long)]
        replace: bool,
    },
}

/// The verb.
pub(crate) async fn run(args: Args, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(Arc::clone(&sources), &[])?;
    let store = crate::run::secrets::open(&context.project, &sources).map_err(refused)?;
    let mut out = std::io::stdout();
    match args.verb {
        Verb::Show => {
            let authority = find(&*store).await?;
            let certificate = authority.certificate();
            writeln!(out, "subject      {}", certificate.subject)?;
            writeln!(out, "from         {}", date(certificate.not_before))?;
            writeln!(out, "until        {}", date(certificate.not_after))?;
            writeln!(out, "sha256       {}", certificate.fingerprint())?;
            writeln!(out, "kept in      {}", store.describe())?;
        }
        Verb::Export => write!(out, "{}", find(&*store).await?.certificate().pem)?,
        Verb::Import { certificate, key, replace } => {
            let authority = read(&certificate, &key)?;
            let replaced = issuer::import(&*store, &authority, replace, SystemTime::now(), &told).await;
            let word = if replaced.map_err(refused)? { "replaced in" } else { "is in" };
            let Certificate { subject, not_after, .. } = authority.certificate();
            writeln!(out, "the authority '{subject}' {word} {}, until {}", store.describe(), date(*not_after))?;
        }
    }
    Ok(Exit::Done)
}

async fn find(store: &dyn SecretStore) -> anyhow::Result<Authority> {
    issuer::find(store, &told).await.map_err(refused)?.ok_or_else(|| {
        anyhow!(
            "{} has no certificate authority yet: it is made with the first certificate, or brought by `controller ca import`",
            store.describe()
        )
    })
}

fn read(certificate: &PathBuf, key: &PathBuf) -> anyhow::Result<Authority> {
    let text =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let pem = text(certificate)?;
    let key_text = Secret::new(text(key)?);
    Authority::read(key_text.expose(), &pem).map_err(|error: PkiError| {
        let place = format!("{} and {}", certificate.display(), key.display());
        let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        anyhow!("{place}: {}{hint}", error.chain())
    })
}

fn told(what: String) {
    crate::context::eprint_line(&what);
}

fn refused(error: GrantError) -> anyhow::Error {
    match error.hint() {
        Some(hint) => anyhow!("{error}\nhint: {hint}"),
        None => anyhow!("{error}"),
    }
}
