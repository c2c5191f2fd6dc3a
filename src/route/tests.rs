//! Tests of what shards share: turns, permits, health, and the choice among hosts.
//!
//! They stand apart from `cursor`, `permits` and `host`, because `tests/loom.rs` compiles those
//! files over a model of the atomics, where ordinary tests cannot run.

use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::host::{BACK_OFF_MS_MAX, FORGET_MS, PASS_OVER_421_MS, PASS_OVER_BROKEN_MS};
use super::*;
use crate::limits;
use crate::mail::{Domain, Mono, ShardId};

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 25))
}

fn host() -> Host {
    Host::new(address(1), 2, Mono(0))
}

/// A plan with `priorities[i]` for host i.
fn plan(registry: &Registry, priorities: &[u16]) -> Plan {
    let addresses: Vec<_> = (0u8..).zip(priorities).map(|(i, p)| (address(i), *p)).collect();
    Plan::new(registry, "example.com", &addresses, usize::MAX, Mono(0))
}

fn turn(plan: &Plan, now: u64, tried: &[usize]) -> Option<usize> {
    let mut set = HostSet::default();
    tried.iter().for_each(|i| set.insert(*i));
    match plan.choose(Mono(now), &set, |_| LaneFill::Room) {
        Choice::Turn(pick) => Some(pick.index),
        _ => None,
    }
}

fn failed(plan: &Plan, index: usize, now: u64) {
    assert!(matches!(plan.hosts()[index].connection_failed(Mono(now)), Verdict::WentDown { .. }));
}

fn spread(counts: &[u64]) -> u64 {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
    /// Each shard has its own plan over one registry; the schedule says which shard takes a block
    /// of how many turns; after each block the counts are within one.
    #[test]
    fn turns_differ_by_at_most_one_for_any_interleaving_of_any_shards(
        shards in 1usize..=16,
        hosts in 1usize..=9,
        schedule in proptest::collection::vec((0usize..16, 1u64..6), 1..80),
    ) {
        let registry = Registry::new(shards);
        let plans: Vec<_> = (0..shards).map(|_| plan(&registry, &vec![0; hosts])).collect();
        let mut counts = vec![0u64; hosts];
        for (shard, block) in schedule {
            let tried = HostSet::default();
            let mut turns = plans[shard % shards].take_turns(block, Mono(0), &tried);
            for _ in 0..block {
                let Choice::Turn(pick) = turns.next(|_| LaneFill::Room) else { panic!() };
                counts[pick.index] += 1;
            }
            prop_assert!(spread(&counts) <= 1, "{counts:?}");
        }
    }
}

#[test]
fn real_threads_share_the_turns_evenly() {
    for shards in [1, 2, 3, 8, 16] {
        let registry = Registry::new(shards);
        let counts: Vec<Vec<u64>> = std::thread::scope(|scope| {
            let work = || {
                let plan = plan(&registry, &[0; 3]);
                let mut counts = vec![0u64; 3];
                for _ in 0..1000 {
                    counts[turn(&plan, 0, &[]).unwrap()] += 1;
                }
                counts
            };
            let threads: Vec<_> = (0..shards).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let sums: Vec<u64> = (0..3).map(|h| counts.iter().map(|c| c[h]).sum()).collect();
        assert!(spread(&sums) <= 1, "{shards} shards: {sums:?}");
        assert_eq!(sums.iter().sum::<u64>(), 1000 * shards as u64);
    }
}

#[test]
fn the_cursor_outlives_a_plan_and_starts_anew_for_other_hosts() {
    let registry = Registry::new(1);
    assert_eq!(turn(&plan(&registry, &[0, 0, 0]), 0, &[]), Some(0));
    assert_eq!(turn(&plan(&registry, &[0, 0, 0]), 0, &[]), Some(1));
    assert_eq!(turn(&plan(&registry, &[0, 0]), 0, &[]), Some(0));
    assert_eq!(turn(&plan(&registry, &[0, 0, 0]), 0, &[]), Some(2));
}

#[test]
fn failover_takes_the_group_then_the_next_priority() {
    let registry = Registry::new(1);
    // Given out of order: the plan sorts by priority.
    let plan = plan(&registry, &[10, 0, 0]);
    assert_eq!([plan.priority(0), plan.priority(1), plan.priority(2)], [0, 0, 10]);
    assert_eq!(plan.hosts()[2].address(), address(0));
    assert_eq!(turn(&plan, 0, &[]), Some(0));
    assert_eq!(turn(&plan, 0, &[0]), Some(1));
    assert_eq!(turn(&plan, 0, &[0, 1]), Some(2));
    let all = plan.choose(Mono(0), &set(&[0, 1, 2]), |_| LaneFill::Room);
    assert!(matches!(all, Choice::Exhausted { all_down: false }));
    failed(&plan, 0, 0);
    failed(&plan, 1, 0);
    assert_eq!(turn(&plan, 0, &[]), Some(2));
}

fn set(indexes: &[usize]) -> HostSet {
    let mut set = HostSet::default();
    indexes.iter().for_each(|i| set.insert(*i));
    set
}

#[test]
fn no_more_hosts_are_tried_than_an_attempt_allows() {
    let registry = Registry::new(1);
    let addresses: Vec<_> = (0..9).map(|i| (address(i), u16::from(i))).collect();
    let plan = Plan::new(&registry, "mx", &addresses, 5, Mono(0));
    assert_eq!(turn(&plan, 0, &[0, 1, 2, 3]), Some(4));
    assert_eq!(turn(&plan, 0, &[0, 1, 2, 3, 4]), None);
}

#[test]
fn an_address_that_comes_twice_is_one_host() {
    let twice = [(address(1), 20), (address(2), 10), (address(1), 10), (address(1), 10)];
    let plan = Plan::new(&Registry::new(1), "mx", &twice, 5, Mono(0));
    let hosts: Vec<_> = plan.hosts().iter().map(|host| host.address()).collect();
    assert_eq!(hosts, [address(2), address(1)]);
    assert_eq!([plan.priority(0), plan.priority(1)], [10, 10]);
}

#[test]
fn a_full_lane_passes_its_turn_only_to_an_empty_one_of_its_priority() {
    use LaneFill::{Empty, Full, Room};
    let registry = Registry::new(1);
    let plan = plan(&registry, &[0, 0, 0, 10]);
    let ask = |fill: [LaneFill; 4]| match plan.choose(Mono(0), &set(&[]), |p| fill[p.index]) {
        Choice::Turn(pick) => (pick.index, true),
        Choice::Wait(pick) => (pick.index, false),
        other => panic!("{other:?}"),
    };
    assert_eq!(ask([Full, Room, Room, Empty]), (0, false));
    assert_eq!(ask([Room, Full, Full, Empty]), (1, false));
    assert_eq!(ask([Room, Empty, Full, Empty]), (1, true));
    assert_eq!(ask([Full, Room, Empty, Empty]), (2, true));
    assert_eq!(ask([Room, Room, Room, Empty]), (1, true));
}

#[test]
fn all_down_is_no_attempt_and_the_probe_is_offered_when_due() {
    let registry = Registry::new(1);
    let plan = plan(&registry, &[0, 10]);
    failed(&plan, 0, 0);
    failed(&plan, 1, 500);
    let choose = |now, tried: &[usize]| plan.choose(Mono(now), &set(tried), |_| LaneFill::Room);
    assert!(matches!(choose(600, &[]), Choice::AllDown { until: Mono(1000) }));
    assert!(matches!(choose(600, &[1]), Choice::Exhausted { all_down: true }));
    assert!(matches!(choose(1000, &[]), Choice::Probe(Pick { index: 0, .. })));
    assert_eq!(plan.probes_due(Mono(1000)).map(|p| p.index).collect::<Vec<_>>(), [0]);
    let probe = plan.hosts()[0].try_probe(Mono(1000), 400).unwrap();
    assert!(matches!(choose(1000, &[]), Choice::AllDown { until: Mono(1400) }));
    assert!(plan.hosts()[0].session_opened(A, Mono(1100)));
    assert_eq!(turn(&plan, 1100, &[]), Some(0));
    // The success has ended the lease: the token says nothing any more.
    assert!(matches!(plan.hosts()[0].probe_failed(probe, Mono(1100)), Verdict::CeilingLowered(1)));
}

#[test]
fn a_passed_over_host_is_skipped_and_the_first_to_end_is_used() {
    let registry = Registry::new(1);
    let plan = plan(&registry, &[0, 0, 10]);
    plan.hosts()[0].pass_over(Mono(0), PASS_OVER_BROKEN_MS);
    assert_eq!([turn(&plan, 0, &[]), turn(&plan, 0, &[])], [Some(1), Some(1)]);
    plan.hosts()[1].pass_over(Mono(0), PASS_OVER_421_MS);
    assert_eq!(turn(&plan, 0, &[]), Some(2));
    plan.hosts()[2].pass_over(Mono(0), PASS_OVER_BROKEN_MS);
    assert_eq!(turn(&plan, 0, &[]), Some(1));
    assert_eq!(turn(&plan, 0, &[1]), Some(0));
    assert!(!plan.all_down(Mono(0)));
    assert_eq!(turn(&plan, PASS_OVER_421_MS, &[]), Some(1));
}

#[test]
fn a_slow_connect_is_skipped_only_while_another_host_is_up() {
    let registry = Registry::new(1);
    let plan = plan(&registry, &[0, 10]);
    plan.hosts()[0].slow_connect_began();
    assert!(plan.has_up(Mono(0), &set(&[])));
    assert_eq!(turn(&plan, 0, &[]), Some(1));
    assert_eq!(turn(&plan, 0, &[1]), Some(0));
    failed(&plan, 1, 0);
    assert!(!plan.has_up(Mono(0), &set(&[])));
    assert_eq!(turn(&plan, 0, &[]), Some(0));
    plan.hosts()[0].slow_connect_ended();
    assert_eq!(plan.hosts()[0].status(Mono(0)), Status::Up);
}

#[test]
fn explain_shows_the_order_and_takes_nothing() {
    let registry = Registry::new(1);
    let plan = plan(&registry, &[0, 0, 0, 10, 10, 10]);
    assert_eq!(turn(&plan, 0, &[]), Some(0));
    failed(&plan, 3, 0);
    plan.hosts()[4].pass_over(Mono(0), 1000);
    let hosts = |now| -> Vec<SocketAddr> {
        plan.explain(Mono(now)).iter().map(|line| line.host.address()).collect()
    };
    let forecast = hosts(0);
    assert_eq!(forecast, [1, 0, 2, 5, 4, 3].map(address));
    assert_eq!(hosts(0), forecast);
    // What happens is what was shown.
    let mut tried = vec![];
    for expected in &forecast[..5] {
        let index = turn(&plan, 0, &tried).unwrap();
        assert_eq!(plan.hosts()[index].address(), *expected);
        tried.push(index);
    }
}

#[test]
fn a_host_goes_down_twice_as_long_each_time_up_to_five_minutes() {
    let host = host();
    assert_eq!(host.connection_failed(Mono(0)), Verdict::WentDown { until: Mono(1000) });
    assert_eq!(host.connection_failed(Mono(1)), Verdict::AlreadyDown);
    let mut now = Mono(1000);
    let mut waits = vec![];
    for _ in 0..12 {
        assert_eq!(host.status(now), Status::ProbeDue);
        let probe = host.try_probe(now, 60_000).unwrap();
        assert!(host.try_probe(now, 60_000).is_none());
        let Verdict::WentDown { until } = host.probe_failed(probe, now) else { panic!() };
        waits.push(until.since_ms(now));
        assert!(host.try_probe(Mono(until.0 - 1), 60_000).is_none());
        now = until;
    }
    assert_eq!(waits[..4], [2000, 4000, 8000, 16_000]);
    assert_eq!(waits[8..], [BACK_OFF_MS_MAX; 4]);
    assert!(host.session_opened(A, now));
    assert_eq!(host.status(now), Status::Up);
    host.session_closed(A, None);
    let verdict = host.connection_failed(now);
    assert_eq!(verdict, Verdict::WentDown { until: Mono(now.0 + 1000) });
}

#[test]
fn a_probe_is_taken_over_when_its_lease_ends() {
    let host = host();
    host.connection_failed(Mono(0));
    let first = host.try_probe(Mono(1000), 500).unwrap();
    assert_eq!(host.status(Mono(1499)), Status::Probing { until: Mono(1500) });
    assert!(host.try_probe(Mono(1499), 500).is_none());
    let second = host.try_probe(Mono(1500), 500).unwrap();
    assert_eq!(host.probe_failed(first, Mono(1600)), Verdict::AlreadyDown);
    assert_eq!(host.status(Mono(1600)), Status::Probing { until: Mono(2000) });
    assert_eq!(host.probe_failed(second, Mono(1700)), Verdict::WentDown { until: Mono(3700) });
}

fn host_with_three_sessions() -> Host {
    let host = host();
    assert!(host.claim(500, Mono(0)).next().is_none());
    for _ in 0..3 {
        assert!(!host.session_opened(A, Mono(0)));
    }
    host
}

#[test]
fn a_failure_beside_a_living_session_lowers_the_ceiling_only() {
    let host = host_with_three_sessions();
    assert_eq!(host.connection_failed(Mono(10_000)), Verdict::CeilingLowered(3));
    assert_eq!((host.permits().limit(), host.status(Mono(10_000))), (3, Status::Up));
    // One a minute.
    assert_eq!(host.connections_max(Mono(69_000)), 3);
    assert_eq!(host.connections_max(Mono(70_000)), 4);
    assert_eq!(host.ceiling(Mono(10_000 + 60 * 60_000)), Some(63));
    // The last good reply is over ten seconds old, though sessions live.
    assert!(matches!(host.connection_failed(Mono(10_001)), Verdict::WentDown { .. }));
}

/// Those that it was to replace may have ended by then, all of them.
#[test]
fn a_replacement_that_is_refused_lowers_the_ceiling_to_what_was_there() {
    let host = host_with_three_sessions();
    assert_eq!(host.refused_beside(10, Mono(100)), Verdict::CeilingLowered(10));
    for _ in 0..3 {
        host.session_closed(A, None);
    }
    assert_eq!(host.refused_beside(4, Mono(200)), Verdict::CeilingLowered(4));
    assert_eq!((host.permits().limit(), host.status(Mono(200))), (4, Status::Up));
}

#[test]
fn only_living_sessions_show_that_a_host_is_alive() {
    let host = host();
    assert!(!host.session_opened(A, Mono(0)));
    assert!(!host.session_opened(A, Mono(0)));
    assert!(!host.session_opened(B, Mono(0)));
    assert!(!host.good_reply(A, Mono(9000)));
    host.session_closed(A, Some(Mono(0)));
    assert!(host.is_alive(Mono(limits::ALIVE_REPLY_MS)));
    assert!(!host.is_alive(Mono(limits::ALIVE_REPLY_MS + 1)));
    host.session_closed(A, None);
    host.session_closed(B, None);
    assert!(!host.is_alive(Mono(0)));
    assert_eq!(host.sessions(), 0);
    // Never below one, even when the count is briefly behind.
    assert!(!host.good_reply(A, Mono(9000)));
    assert_eq!(host.connection_failed(Mono(9000)), Verdict::CeilingLowered(1));
}

#[test]
fn the_limit_is_the_largest_recent_claim() {
    let host = host();
    host.claim(20, Mono(0)).for_each(drop);
    host.claim(5, Mono(1000)).for_each(drop);
    assert_eq!(host.permits().limit(), 20);
    host.claim(5, Mono(61_000)).for_each(drop);
    assert_eq!(host.permits().limit(), 20);
    host.claim(5, Mono(121_000)).for_each(drop);
    assert_eq!(host.permits().limit(), 5);
    assert_eq!(host.connections_max(Mono(900_000)), 5);
}

#[test]
fn a_raised_limit_rings_all_who_wait() {
    let host = host();
    host.claim(1, Mono(0)).for_each(drop);
    let grant = host.permits().acquire(A).unwrap();
    assert!(host.permits().acquire(A).is_none());
    assert!(host.permits().acquire(B).is_none());
    assert_eq!(host.claim(1, Mono(1)).count(), 0);
    assert_eq!(host.claim(2, Mono(2)).collect::<Vec<_>>(), [A, B]);
    assert_eq!(host.permits().release(grant.permit), None);
}

#[test]
fn silence_is_measured_by_the_usual_reply_time_of_all_sessions() {
    let host = host();
    assert!(!host.check_silence(Mono(0), Mono(100_000)), "nothing is usual yet");
    for _ in 0..50 {
        host.reply_took(200);
    }
    assert_eq!(host.usual_reply_ms(), 200);
    assert!(!host.check_silence(Mono(0), Mono(2000)));
    assert!(host.check_silence(Mono(0), Mono(2001)));
    assert!(matches!(host.status(Mono(2001)), Status::PassedOver { .. }));
    assert!(!host.good_reply(B, Mono(2002)));
    assert_eq!(host.status(Mono(2002)), Status::Up);
    assert!(!host.check_silence(Mono(0), Mono(4002)), "another session has had a reply");
    assert!(host.check_silence(Mono(0), Mono(4003)));
}

#[test]
fn what_was_learned_is_forgotten_after_an_hour_without_use() {
    let registry = Registry::new(1);
    let held = registry.host(address(1), Mono(0));
    drop(registry.host(address(2), Mono(0)));
    registry.host(address(3), Mono(0)).speak_plainly(Mono(0), 2 * FORGET_MS);
    held.connection_failed(Mono(0));
    held.remember_recipients_max(7);
    assert_eq!([held.recipients_max(100), held.recipients_max(5)], [7, 5]);
    held.remember_train_window(8);
    held.speak_plainly(Mono(0), 24 * FORGET_MS);
    registry.sweep(Mono(FORGET_MS - 1));
    assert_eq!(registry.hosts().len(), 3);
    assert_ne!(held.status(Mono(0)), Status::Up);
    registry.sweep(Mono(FORGET_MS));
    assert_eq!(held.status(Mono(0)), Status::Up);
    assert_eq!((held.recipients_max(100), held.train_window()), (100, 0));
    assert!(held.is_spoken_to_plainly(Mono(FORGET_MS)), "a day, used or not");
    assert!(!held.is_spoken_to_plainly(Mono(24 * FORGET_MS)));
    assert!(Arc::ptr_eq(&held, &registry.host(address(1), Mono(FORGET_MS))));
    assert_eq!(registry.hosts().len(), 2);
    registry.sweep(Mono(2 * FORGET_MS));
    assert_eq!(registry.hosts().len(), 1);
}

#[test]
fn unused_groups_are_dropped_and_used_ones_stay() {
    let registry = Registry::new(1);
    let kept = plan(&registry, &[0]);
    drop(plan(&registry, &[0, 0]));
    registry.sweep(Mono(FORGET_MS));
    assert_eq!(registry.groups().len(), 1);
    assert_eq!(turn(&kept, 0, &[]), Some(0));
}

#[test]
fn permits_ring_the_waiting_shards_in_turn() {
    let permits = Permits::new(2);
    let first = permits.acquire(ShardId(9)).unwrap();
    let second = permits.acquire(ShardId(9)).unwrap();
    assert!(permits.try_acquire().is_none());
    for shard in [63, 5, 2] {
        assert!(permits.acquire(ShardId(shard)).is_none());
    }
    assert!(permits.wanted(Mono(0)));
    assert_eq!(permits.release(first.permit), Some(ShardId(2)));
    // Shard 2 has no use for it any more: the ring goes on.
    assert_eq!(permits.stop_waiting(ShardId(2)), Some(ShardId(5)));
    let third = permits.acquire(ShardId(5)).unwrap();
    assert!(permits.acquire(ShardId(2)).is_none());
    assert_eq!(permits.release(second.permit), Some(ShardId(63)));
    assert_eq!(permits.release(third.permit), Some(ShardId(2)));
    assert!(!permits.wanted(Mono(0)));
    assert_eq!(permits.taken(), 0);
}

#[test]
fn holders_give_back_no_more_than_a_few_permits_for_each_shard_that_waits() {
    let permits = Permits::new(20);
    let held: Vec<_> = (0..20).map(|_| permits.acquire(ShardId(0)).unwrap().permit).collect();
    let give_back = |now| {
        let wanted = (0..20).filter(|_| permits.wanted(now));
        wanted.map(|_| permits.comes_back(now)).count()
    };
    assert_eq!(give_back(Mono(7_000)), 0);
    assert!(permits.acquire(ShardId(1)).is_none() && permits.is_waiting(ShardId(1)));
    let for_one = give_back(Mono(7_000));
    assert!((1..10).contains(&for_one), "{for_one}");
    assert!(permits.acquire(ShardId(2)).is_none());
    assert_eq!(give_back(Mono(7_001)), for_one);
    assert_eq!(give_back(Mono(7_002)), 0);
    // What did not come back by then does not hold up what others hold.
    assert_eq!(give_back(Mono(8_000)), 2 * for_one);
    let mut held = held.into_iter();
    let mut release = || permits.release(held.next().unwrap());
    assert_eq!(release(), Some(ShardId(1)));
    assert!(permits.acquire(ShardId(1)).is_some(), "it has come back");
    assert!(permits.acquire(ShardId(1)).is_none());
    // For what has come back another one may.
    assert_eq!(give_back(Mono(8_001)), 1);
    assert_eq!(release(), Some(ShardId(2)));
    assert_eq!(permits.stop_waiting(ShardId(1)), None);
    assert!(!permits.waiting() && !permits.wanted(Mono(9_000)), "nobody waits");
}

#[test]
fn a_row_becomes_a_plan() {
    let row = |text| parse_row(text).unwrap().unwrap();
    let table = Table::build(vec![
        row("example.com 192.0.2.1/pri=5, [2001:db8::1]:2525"),
        row("named.example mx.example, 192.0.2.1"),
        row("dns.example USEDNS"),
    ]);
    let table = table.unwrap();
    let find = |name: &str| table.find(&Domain::parse(name.as_bytes()).unwrap()).unwrap();
    let addresses = find("example.com").addresses().unwrap();
    assert_eq!(addresses[0], (address(1), 5));
    let plan = Plan::new(&Registry::new(1), "example.com", &addresses, usize::MAX, Mono(0));
    assert_eq!(plan.hosts()[0].address(), "[2001:db8::1]:2525".parse().unwrap());
    assert_eq!(find("named.example").addresses(), None);
    assert_eq!(find("dns.example").addresses(), None);
}

#[test]
fn every_state_has_a_word() {
    let host = host();
    host.connection_failed(Mono(0));
    assert_eq!(host.status(Mono(0)).name(), "down");
    assert_eq!(host.status(Mono(1000)).name(), "probe due");
}

#[test]
fn a_preview_sees_what_is_known_and_makes_nothing_known() {
    let registry = Registry::new(2);
    let addresses = [(address(0), 0), (address(1), 0), (address(2), 5)];
    let preview = || Plan::preview(&registry, "example.com", &addresses, usize::MAX, Mono(9));
    let order = |plan: &Plan| -> Vec<SocketAddr> {
        plan.explain(Mono(9)).iter().map(|forecast| forecast.host.address()).collect()
    };
    assert_eq!(order(&preview()), [address(0), address(1), address(2)]);
    assert!(registry.hosts().is_empty() && registry.groups().is_empty());
    assert!(registry.known_host(address(0)).is_none());
    // With the real plan's cursor and hosts.
    let real = plan(&registry, &[0, 0, 5]);
    assert_eq!(turn(&real, 1, &[]), Some(0));
    failed(&real, 2, 2);
    let used = registry.known_host(address(1)).unwrap().last_used();
    assert_eq!(order(&preview()), [address(1), address(0), address(2)]);
    assert!(matches!(preview().explain(Mono(9))[2].status, Status::Down { .. }));
    assert_eq!(registry.known_host(address(1)).unwrap().last_used(), used);
}

#[test]
fn a_probe_that_could_not_be_made_is_due_again_with_the_same_back_off() {
    let host = host();
    host.connection_failed(Mono(0));
    let probe = host.try_probe(Mono(1000), 500).unwrap();
    host.probe_put_off(probe, Mono(1100));
    assert_eq!(host.status(Mono(1099)), Status::Down { until: Mono(1100) });
    let probe = host.try_probe(Mono(1100), 500).unwrap();
    assert_eq!(host.probe_failed(probe, Mono(1200)), Verdict::WentDown { until: Mono(3200) });
    let late = host.try_probe(Mono(3200), 500).unwrap();
    let second = host.try_probe(Mono(3700), 500).unwrap();
    host.probe_put_off(late, Mono(9000));
    assert_eq!(host.status(Mono(3800)), Status::Probing { until: Mono(4200) });
    assert!(host.good_reply(A, Mono(3900)));
    host.probe_put_off(second, Mono(9000));
    assert_eq!(host.status(Mono(4000)), Status::Up);
}

#[test]
fn permits_are_plenty_while_fewer_than_a_quarter_are_taken() {
    for (limit, most) in [(0, 0), (3, 0), (4, 1), (40, 10), (500, 125)] {
        let permits = Permits::new(limit);
        let mut taken = Vec::new();
        while permits.are_plenty() {
            taken.push(permits.try_acquire().unwrap());
        }
        assert_eq!(taken.len(), most, "of {limit}");
        for permit in taken {
            assert!(permits.release(permit).is_none(), "nobody waits");
        }
    }
}
