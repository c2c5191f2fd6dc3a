//! What the mail log costs a message at full detail: its lines from injection to delivery, with
//! the hand-over to the writer. The budget is a tenth of the 10 us that a message may take.

#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::tz::TimeZone;
use ringpost::mail::{Dcid, Icid, Mailbox, Mid, Mono, Now, Reply, Rid, Wall};
use ringpost::telemetry::MailLog;
use ringpost::telemetry::settings::LogDetail;

/// The lines of one message on connections that stand.
fn one_message(log: &mut MailLog, now: Now, mid: Mid, parts: &(Mailbox, Mailbox, Reply)) {
    let (sender, recipient, reply) = parts;
    let (icid, dcid, rids) = (Icid(1_048_577), Dcid(2_097_153), [Rid(0)]);
    log.start_mid(now, mid, icid);
    log.from(now, mid, icid, Some(sender));
    log.to(now, mid, icid, Rid(0), recipient);
    log.message_id(now, mid, b"<20140702091507.1234@out.example.net>");
    log.subject(now, mid, b"Your order 4711 is on its way");
    log.ready(now, mid, 2048, Some(sender));
    log.queued(now, mid);
    log.delivery_start(now, dcid, mid, &rids);
    log.message_done(now, dcid, mid, &rids);
    log.response(now, mid, &rids, reply);
    log.message_finished(now, mid);
}

fn mail_log(c: &mut Criterion) {
    let mailbox = |text: &str| Mailbox::parse(text.as_bytes()).expect("an address");
    let lines = ["2.0.0 Ok: queued as 3jjSKc6HnKz4GTHJ"].iter().collect();
    let reply = Reply { code: 250, enhanced: None, lines };
    let parts = (mailbox("bounces+4711@out.example.net"), mailbox("user@example.com"), reply);
    let mut log = MailLog::new(TimeZone::system(), LogDetail::Full);
    let mut now = Now { mono: Mono(0), wall: Wall(1_404_292_507_000) };
    let mut mid = 1_048_576;
    let mut group = c.benchmark_group("mail_log");
    group.throughput(Throughput::Elements(1));
    group.bench_function("message_at_full_detail", |b| {
        b.iter(|| {
            mid += 1;
            // 100,000 messages a second; a write every 256 KiB.
            now = now.plus_ms(u64::from(mid % 100 == 0));
            one_message(&mut log, black_box(now), Mid(mid), black_box(&parts));
            if log.waiting_octets() > 256 * 1024 {
                let written = log.take();
                log.recycle(black_box(written));
            }
        });
    });
    group.bench_function("connection_opened", |b| {
        let local = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
        let peer = SocketAddr::from((Ipv4Addr::new(192, 168, 1, 10), 25));
        b.iter(|| {
            log.new_smtp_dcid(now, Dcid(299), black_box(local), black_box(peer));
            if log.waiting_octets() > 256 * 1024 {
                let written = log.take();
                log.recycle(black_box(written));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, mail_log);
criterion_main!(benches);
