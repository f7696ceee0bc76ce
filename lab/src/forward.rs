//! `lab forward`: a port of this machine's loopback leads into the lab, for a browser for instance.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cgroup::Cgroups;
use crate::failure::Failure;
use crate::fleet::GATEWAY;
use crate::paths::LabPaths;
use crate::{net, output, run, socket};

/// Where the connections lead: addresses to try in order, within a network namespace.
#[derive(Debug, Clone)]
struct Target {
    namespace: PathBuf,
    addresses: Vec<SocketAddr>,
}

/// Serves until it is interrupted.
pub(crate) fn forward(paths: &LabPaths, port: u16, to: Option<&str>) -> Result<()> {
    run::require_root("forwarding a port")?;
    let (target, shown) = target(paths, port, to)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
        let taken = error.kind() == std::io::ErrorKind::AddrInUse;
        let error = anyhow::Error::new(error).context(format!("cannot listen on 127.0.0.1:{port}"));
        if taken {
            error.context(Failure::new(
                format!("port {port} is taken on this machine"),
                "lab forward ANOTHER --to HOST:PORT",
            ))
        } else {
            error
        }
    })?;
    output::note(format!("http://127.0.0.1:{port} leads to {shown}; Ctrl-C ends it"));
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept a connection")?;
        let target = target.clone();
        std::thread::spawn(move || {
            if let Err(error) = pipe(stream, &target) {
                output::note(format!("a connection failed: {error:#}"));
            }
        });
    }
    Ok(())
}

/// Without `--to` the lab's own services, else a port of a host: what listens on its loopback, too.
fn target(paths: &LabPaths, port: u16, to: Option<&str>) -> Result<(Target, String)> {
    let (host, port) = parse_target(to.unwrap_or(GATEWAY), port)?;
    if host == GATEWAY {
        let gateway = socket::status(paths)?.gateway;
        let addresses = vec![SocketAddr::from((gateway, port))];
        return Ok((Target { namespace: paths.namespace_file(), addresses }, format!("the lab's {gateway}:{port}")));
    }
    let host = socket::find_host(paths, host)?;
    let init = Cgroups::find()?.init_of(&paths.name, &host.id).ok_or_else(|| {
        Failure::new(format!("{} is not up: {}", host.name, host.state), format!("lab start {}", host.name))
    })?;
    let addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((host.address, port))];
    Ok((
        Target { namespace: PathBuf::from(format!("/proc/{init}/ns/net")), addresses },
        format!("port {port} of {}", host.name),
    ))
}

/// `HOST:PORT` or `HOST`, whose port is then the local one.
fn parse_target(to: &str, port: u16) -> Result<(&str, u16)> {
    let Some((host, text)) = to.split_once(':') else { return Ok((to, port)) };
    match text.parse() {
        Ok(port) if port > 0 && !host.is_empty() => Ok((host, port)),
        _ => Err(Failure::new(format!("'{to}' is no HOST:PORT"), "for example --to consul-server-1:8500").into()),
    }
}

fn pipe(here: TcpStream, target: &Target) -> Result<()> {
    let there = connect(&target.namespace, &target.addresses)?;
    let back = (there.try_clone().context("cannot copy a socket")?, here.try_clone().context("cannot copy a socket")?);
    let other = std::thread::spawn(move || copy(back.0, back.1));
    copy(here, there);
    let _ = other.join();
    Ok(())
}

/// Until one side ends; the other is told.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn connect(namespace: &Path, addresses: &[SocketAddr]) -> Result<TcpStream> {
    net::in_namespace(namespace, || {
        let mut last = anyhow::anyhow!("no address");
        for address in addresses {
            match TcpStream::connect_timeout(address, Duration::from_secs(5)) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = anyhow::Error::new(error).context(format!("cannot connect to {address}")),
            }
        }
        Err(last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_or_refused() {
        assert_eq!(parse_target("a:80", 1).unwrap(), ("a", 80));
        assert_eq!(parse_target("a", 1).unwrap(), ("a", 1));
        for wrong in ["a:", ":80", "a:0", "a:http", "a:70000"] {
            assert!(parse_target(wrong, 1).is_err(), "{wrong}");
        }
    }
}
