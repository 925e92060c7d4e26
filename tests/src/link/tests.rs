//! The link itself, with an echo in place of the relay.

use super::*;
use std::collections::BTreeSet;

const DEADLINE: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

/// Sends back what comes, and tells from where it came.
async fn echo() -> (SocketAddr, watch::Receiver<BTreeSet<SocketAddr>>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = socket.local_addr().expect("bound");
    let (sender, seen) = watch::channel(BTreeSet::new());
    tokio::spawn(async move {
        let mut buffer = vec![0; MAX_PACKET];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            sender.send_if_modified(|seen| seen.insert(from));
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    });
    (address, seen)
}

async fn client(link: &Link) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    socket.connect(link.address()).await.expect("connected");
    socket
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; MAX_PACKET];
    let len = timeout(DEADLINE, socket.recv(&mut buffer)).await.expect("in time").expect("received");
    buffer.truncate(len);
    buffer
}

async fn round_trip(socket: &UdpSocket, words: &[u8]) -> Duration {
    let start = Instant::now();
    socket.send(words).await.expect("sent");
    assert_eq!(receive(socket).await, words);
    start.elapsed()
}

#[tokio::test]
async fn a_delay_really_delays_and_can_be_changed() {
    let (relay, _) = echo().await;
    let link = Link::start(relay, seed(), Direction::delay(20 * MS)).expect("started");
    let socket = client(&link).await;
    assert!(round_trip(&socket, b"slow").await >= 40 * MS);
    link.set(Way::Down, Direction::default());
    let once = round_trip(&socket, b"half").await;
    assert!(once >= 20 * MS, "{once:?}");
    link.set_both(Direction { rate_bps: Some(80_000), ..Direction::default() });
    // A hundred bytes take ten milliseconds, each way.
    assert!(round_trip(&socket, &[7; 100]).await >= 20 * MS);
}

#[tokio::test]
async fn a_blackhole_swallows_what_is_under_way_too() {
    let (relay, _) = echo().await;
    let link = Link::start(relay, seed(), Direction::default()).expect("started");
    let socket = client(&link).await;
    round_trip(&socket, b"before").await;
    link.set(Way::Up, Direction::delay(300 * MS));
    socket.send(b"under way").await.expect("sent");
    link.wait_until("it came", DEADLINE, |stats| stats.up.came == 2).await;
    link.blackhole(true);
    socket.send(b"later").await.expect("sent");
    link.wait_until("both are gone", DEADLINE, |stats| stats.up.blackholed == 2).await;
    link.blackhole(false);
    link.set(Way::Up, Direction::default());
    round_trip(&socket, b"after").await;
    assert_eq!(link.stats().up.arrived, 2);
}

#[tokio::test]
async fn the_relay_sees_a_new_address_of_each_client() {
    let (relay, mut seen) = echo().await;
    let link = Link::start(relay, seed(), Direction::default()).expect("started");
    let (one, two) = (client(&link).await, client(&link).await);
    round_trip(&one, b"one").await;
    round_trip(&two, b"two").await;
    let before: BTreeSet<SocketAddr> = link.upstream_addresses().into_iter().collect();
    assert_eq!((before.len(), &*seen.borrow_and_update()), (2, &before));
    link.change_address().expect("rebound");
    round_trip(&one, b"one").await;
    round_trip(&two, b"two").await;
    assert_eq!(seen.borrow_and_update().len(), 4);
    link.change_address_to(Ipv4Addr::new(127, 0, 0, 2).into()).expect("rebound");
    round_trip(&one, b"one").await;
    assert!(seen.borrow_and_update().iter().any(|address| address.ip() == Ipv4Addr::new(127, 0, 0, 2)));
}

#[tokio::test]
async fn chance_takes_the_packets_that_the_seed_says() {
    let (relay, _) = echo().await;
    let rules = Direction { loss: 0.3, duplicate: 0.2, ..Direction::default() };
    let link = Link::start(relay, seed(), Direction::default()).expect("started");
    link.set(Way::Up, rules.clone());
    let socket = client(&link).await;
    let fates: Vec<Fate> = (0..100).map(|number| rules.fate(link.seed(), Way::Up, number)).collect();
    for (number, fate) in (0_u8..).zip(&fates) {
        socket.send(&[number]).await.expect("sent");
        for _ in 0..u8::from(!fate.lost) + u8::from(!fate.lost && fate.duplicated) {
            assert_eq!(receive(&socket).await, [number], "{link:?}");
        }
    }
    let stats = link.wait_until("all came", DEADLINE, |stats| stats.up.came == 100).await;
    assert_eq!(stats.up.lost, fates.iter().filter(|fate| fate.lost).count() as u64);
    assert_eq!(stats.up.arrived, stats.down.arrived);
}
