//! A network with latency, for a kernel without netem: one TCP proxy per loopback address.
//!
//! Everything passes on half a round trip later each way, and a new connection costs a whole one, as a real network's
//! would.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

const USAGE: &str = "usage: delayproxy ROUND_TRIP_MS LISTEN_PORT TARGET_PORT ADDRESS...";

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [round_trip, listen, target, addresses @ ..] = &words[..] else { bail!(USAGE) };
    ensure!(!addresses.is_empty(), USAGE);
    let round_trip = round_trip.parse().with_context(|| format!("'{round_trip}' is no number of milliseconds"))?;
    let port = |text: &str| text.parse::<u16>().with_context(|| format!("'{text}' is no port"));
    let (listen, target) = (port(listen)?, port(target)?);
    let mut proxies = Vec::new();
    for text in addresses {
        let address: Ipv4Addr = text.parse().with_context(|| format!("'{text}' is no IPv4 address"))?;
        ensure!(address.is_loopback(), "{address} is not on this machine: loopback only");
        let listener =
            TcpListener::bind((address, listen)).with_context(|| format!("cannot listen on {address}:{listen}"))?;
        let round_trip = Duration::from_millis(round_trip);
        proxies.push(thread::spawn(move || serve(&listener, address, target, round_trip)));
    }
    for proxy in proxies {
        if proxy.join().is_err() {
            bail!("a proxy ended");
        }
    }
    Ok(())
}

fn serve(listener: &TcpListener, address: Ipv4Addr, port: u16, round_trip: Duration) {
    for client in listener.incoming().flatten() {
        thread::spawn(move || {
            thread::sleep(round_trip);
            // A target that is not there looks like one that hangs up: the client tells it.
            let Ok(server) = TcpStream::connect((address, port)) else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { return };
            pipe(from_client, server, round_trip / 2);
            pipe(from_server, client, round_trip / 2);
        });
    }
}

/// One direction: what is read now is written after the delay. An empty message is the end.
fn pipe(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (at, data) in receiver {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if data.is_empty() || to.write_all(&data).is_err() {
                break;
            }
        }
        // The other side may have closed it already.
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from.read(&mut buffer).unwrap_or(0);
            let Some(data) = buffer.get(..length) else { return };
            if sender.send((Instant::now() + delay, data.to_vec())).is_err() || length == 0 {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_whole_and_late() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().port();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = proxy.local_addr().unwrap().port();
        thread::spawn(move || serve(&proxy, Ipv4Addr::LOCALHOST, target, Duration::from_millis(60)));
        thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let start = Instant::now();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let sent = vec![7; 300_000];
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert!(back == sent && start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
    }
}
