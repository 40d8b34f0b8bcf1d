mod played;

use protocol::id::ShortText;

use super::*;
use crate::engine::merchant::Merchant;
use crate::runtime::testing::eventually_async;
use played::{Gateway, Mode, idle, merchant, shard, with_sites};

#[test]
fn a_request_is_answered_through_its_leader_with_a_hint() {
    with_sites(2, 1_000, |cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        gateway.query(7, 20_000).await;
        assert_eq!(gateway.answer().await, (7, Code::Ok, 2, 2, 0));
        gateway.refund(8).await;
        assert_eq!(gateway.answer().await, (8, Code::Ok, 2, 2, 0));
        {
            let worker = sites[1].worker();
            let (waiter, gateway, wait_us) = worker.seen[0];
            assert_eq!((waiter.kind, gateway), (kind::QUERY, 1));
            assert!((1..=20_000_000).contains(&wait_us));
        }
        assert!(sites[0].worker().seen.is_empty());
        // Asked where it is led, the answer needs no hint.
        let mut other = Gateway::connect(&cluster, &sites[1]).await;
        other.query(9, 0).await;
        assert_eq!(other.answer().await, (9, Code::Ok, 0, 2, 0));
        idle(&sites).await;
        let metrics = sites[0].net.metrics.peer(2).unwrap();
        assert!(metrics.forwarded.value() >= 2 && metrics.forwarded_here.value() == 0);
        assert!(sites[1].net.metrics.peer(1).unwrap().forwarded_here.value() >= 2);
    });
}

#[test]
fn gateways_are_told_who_leads() {
    with_sites(2, 1_000, |cluster, sites, gateway| async move {
        let mut control = gateway.control().await;
        sites[0].believe(2);
        assert_eq!(control.leader().await, (1, 2));
        // Without a leader there is nothing to tell.
        sites[0].mesh.publish_leader(shard(), 2, 0);
        sites[0].mesh.publish_leader(shard(), 3, 1);
        assert_eq!(control.leader().await, (3, 1));
        let late = Gateway::connect(&cluster, &sites[0]).await;
        assert_eq!(late.control().await.leader().await, (3, 1), "what is known, at once");
    });
}

#[test]
fn a_gateway_that_does_not_read_is_told_the_newest_later() {
    with_sites(2, 1_000, |cluster, sites, _| async move {
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(64_u32.into());
        let slow = Gateway::connect_with(&cluster, &sites[0], transport).await;
        let mut control = slow.control().await;
        let mut prompt = Gateway::connect(&cluster, &sites[0]).await.control().await;
        for term in 1..=500 {
            let site = (term % 2) as u8 + 1;
            sites[0].mesh.publish_leader(shard(), term, site);
            assert_eq!(prompt.leader().await, (term, site), "nobody waits for the slow one");
        }
        let mut terms = Vec::new();
        while terms.last() != Some(&500) {
            terms.push(control.leader().await.0);
        }
        assert!(terms.is_sorted() && terms.len() < 100, "{terms:?}");
    });
}

/// What a site knows of a merchant may be old, unless it leads the merchant's shard and has
/// taken over everything that was committed before.
#[test]
fn only_the_leader_refuses_for_good_by_what_it_knows_of_the_merchant() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        let other = ShortText::new(b"gw-9").unwrap();
        let foreign = Merchant { gateways: vec![other], ..merchant() };
        sites[0].knows(&foreign);
        let mut refused = async |correlation| {
            gateway.query(correlation, 0).await;
            let (answered, code, hint, ..) = gateway.answer().await;
            assert_eq!(answered, correlation);
            (code, hint)
        };
        assert_eq!(refused(1).await, (Code::NotLeader, 0), "nobody leads");
        sites[0].believe(2);
        assert_eq!(refused(2).await, (Code::NotLeader, 2));
        sites[0].mesh.publish_leader(shard(), 2, 1);
        assert_eq!(refused(3).await, (Code::NotLeader, 0), "it has not heard of all merchants");
        // The worker hands over what was committed before its term.
        sites[0].hears(2);
        eventually_async("it has heard", || sites[0].net.judges(shard())).await;
        assert_eq!(refused(4).await, (Code::GatewayNotAllowed, 0));
        // Another term: what was committed in between is not there yet.
        sites[0].mesh.publish_leader(shard(), 4, 1);
        assert_eq!(refused(5).await, (Code::NotLeader, 0));
        sites[0].knows(&merchant());
        // Nor does it carry anything out before.
        let seen = || sites[0].worker().seen.len();
        let before = seen();
        sites[0].is_patient();
        let (answer, ()) = tokio::join!(refused(6), async {
            sites[0].waits_with(1).await;
            assert_eq!(seen(), before);
            sites[0].hears(4);
        });
        assert_eq!(answer, (Code::Ok, 0));
        assert!(sites[1].worker().seen.is_empty());
        idle(&sites).await;
    });
}

#[test]
fn many_requests_are_all_answered_once() {
    with_sites(2, 10_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        for correlation in 0..900 {
            gateway.query(correlation, 0).await;
        }
        let mut answered = Vec::new();
        for _ in 0..900 {
            let (correlation, code, hint, ..) = gateway.answer().await;
            assert_eq!((code, hint), (Code::Ok, 2));
            answered.push(correlation);
        }
        answered.sort_unstable();
        assert!(answered.into_iter().eq(0..900));
        idle(&sites).await;
    });
}

#[test]
fn without_a_leader_a_request_waits_for_one() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        for leader in [1, 2] {
            sites.iter().for_each(|site| site.believe(0));
            gateway.query(u64::from(leader), 0).await;
            sites[0].waits_with(1).await;
            sites.iter().for_each(|site| site.believe(leader));
            let hint = if leader == 1 { 0 } else { leader };
            let expected = (u64::from(leader), Code::Ok, hint, i64::from(leader), 0);
            assert_eq!(gateway.answer().await, expected);
        }
        idle(&sites).await;
    });
}

#[test]
fn a_request_that_finds_no_leader_in_time_is_told_so() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        gateway.query(1, 30).await;
        let (_, code, hint, _, retry_ms) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NoLeader, 0));
        assert!(retry_ms > 0);
        // A leader that cannot be reached from here may be from elsewhere.
        sites[0].believe(2);
        sites[1].die().await;
        let mesh = Arc::clone(&sites[0].mesh);
        eventually_async("the link is lost", || !mesh.route(2).unwrap().is_up()).await;
        gateway.query(2, 30).await;
        let (_, code, hint, _, retry_ms) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NotLeader, 2));
        assert!(retry_ms > 0);
        idle(&sites[..1]).await;
    });
}

#[test]
fn what_the_own_worker_refuses_goes_to_the_new_leader() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(1));
        sites[0].worker().mode = Mode::Refuse;
        gateway.refund(3).await;
        sites[0].sees(1).await;
        sites.iter().for_each(|site| site.believe(2));
        assert_eq!(gateway.answer().await, (3, Code::Ok, 2, 2, 0));
        idle(&sites).await;
    });
}

#[test]
fn a_leader_that_falls_silent_is_followed_by_the_next_one() {
    with_sites(3, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(4, 0).await;
        sites[1].sees(1).await;
        sites.iter().for_each(|site| site.believe(3));
        assert_eq!(gateway.answer().await, (4, Code::Ok, 3, 3, 0));
        // The old one's late answer is nobody's.
        sites[1].worker().mode = Mode::Answer;
        idle(&sites).await;
        gateway.query(5, 0).await;
        assert_eq!(gateway.answer().await, (5, Code::Ok, 3, 3, 0));
    });
}

#[test]
fn what_was_at_a_site_whose_link_is_lost_goes_to_the_new_leader() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(6, 0).await;
        sites[1].sees(1).await;
        sites[1].die().await;
        sites[0].waits_with(1).await;
        sites[0].believe(1);
        assert_eq!(gateway.answer().await, (6, Code::Ok, 0, 1, 0));
        idle(&sites[..1]).await;
    });
}

/// A refusal would be taken for "nothing was charged", while the site that died may have
/// seen to it that something was.
#[test]
fn what_a_leader_had_is_not_refused_by_the_next_one_as_if_nothing_had_come_of_it() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[0].is_patient();
        sites[1].worker().mode = Mode::Keep;
        let signs = sites[0].with_key(1);
        sites.iter().for_each(|site| site.knows(&signs));
        gateway.pay(6, 1, 30_000).await;
        sites[1].sees(1).await;
        sites[1].die().await;
        sites[0].waits_with(1).await;
        // It is offered to the new leader again.
        sites[0].worker().mode = Mode::Shed;
        sites[0].believe(1);
        sites[0].sees(1).await;
        sites[0].worker().mode = Mode::Answer;
        assert_eq!(gateway.answer().await, (6, Code::Ok, 0, 1, 0));
        // What nobody had before is refused at once.
        sites[0].worker().mode = Mode::Shed;
        gateway.pay(7, 1, 30_000).await;
        assert_eq!(gateway.answer().await.1, Code::Overloaded);
        idle(&sites[..1]).await;
    });
}

#[test]
fn what_a_leader_had_and_no_other_one_takes_is_unknown_in_the_end() {
    with_sites(3, 1_000, |_cluster, sites, mut gateway| async move {
        for (term, next) in [(1, 1), (2, 3)] {
            sites.iter().for_each(|site| site.follow(2, term));
            sites[1].worker().mode = Mode::Keep;
            let before = sites[1].worker().seen.len();
            gateway.refund(term).await;
            sites[1].sees(before + 1).await;
            let new = &sites[usize::from(next) - 1];
            new.worker().mode = Mode::Shed;
            sites.iter().for_each(|site| site.follow(next, term));
            let (answered, code, hint, _, retry_ms) = gateway.answer().await;
            assert_eq!(answered, term);
            let expected = if next == 1 { (Code::NoLeader, 0) } else { (Code::NotLeader, 3) };
            assert_eq!((code, hint), expected);
            assert!(retry_ms > 0 && !new.worker().seen.is_empty());
            sites[1].worker().mode = Mode::Answer;
            idle(&sites).await;
        }
    });
}

/// More than a batch holds, and all that may be unanswered.
#[test]
fn however_many_wait_the_new_leader_s_worker_gets_them_all() {
    const MANY: u64 = 5_000;
    with_sites(2, MANY as usize, |_cluster, sites, mut gateway| async move {
        sites[0].is_patient();
        for leader in [1, 2] {
            sites.iter().for_each(|site| site.believe(0));
            gateway.queries(0..MANY, 60_000).await;
            sites[0].waits_with(MANY as usize).await;
            sites.iter().for_each(|site| site.believe(leader));
            let mut answered = vec![false; MANY as usize];
            for _ in 0..MANY {
                let (correlation, code, ..) = gateway.answer().await;
                assert_eq!(code, Code::Ok);
                assert!(!std::mem::replace(&mut answered[correlation as usize], true));
            }
            idle(&sites).await;
        }
    });
}

/// What was authorised by a record that has been replaced is not carried out: the leader
/// knows of the new one, the asking site does not yet.
#[test]
fn a_key_that_was_revoked_opens_nothing_through_a_site_that_is_behind() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        let (old, new) = (sites[0].with_key(1), sites[0].with_key(2));
        sites[0].knows(&old);
        sites[1].knows(&new);
        gateway.pay(1, 1, 100).await;
        let (_, code, hint, _, retry_ms) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NotLeader, 2));
        assert!(retry_ms > 0);
        // Or while it waits for a leader.
        sites[0].is_patient();
        for leader in [2, 1] {
            sites.iter().for_each(|site| site.believe(0));
            sites[0].knows(&old);
            gateway.pay(2, 1, 30_000).await;
            sites[0].waits_with(1).await;
            sites[0].knows(&new);
            sites.iter().for_each(|site| site.believe(leader));
            let (_, code, hint, ..) = gateway.answer().await;
            let elsewhere = leader != 1;
            let expected = if elsewhere { Code::NotLeader } else { Code::NoLeader };
            assert_eq!((code, hint), (expected, if elsewhere { 2 } else { 0 }));
        }
        idle(&sites).await;
        assert!(sites.iter().all(|site| site.worker().seen.is_empty()));
        // Asked again it is judged by the new record.
        gateway.pay(3, 1, 100).await;
        assert_eq!(gateway.answer().await.1, Code::UnknownKey);
        idle(&sites).await;
    });
}

/// Packets of a connection that was replaced may be handed over behind the first ones of
/// the new one: different tasks read them.
#[test]
fn what_comes_late_from_an_older_link_changes_nothing() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(1, 0).await;
        gateway.query(2, 0).await;
        sites[1].sees(2).await;
        let link = sites[1].forward().site(1).unwrap().link.get();
        let late = |link: u32| {
            let mut packet = Vec::new();
            let (kind, body) = (kind::QUERY, &b""[..]);
            let request = Request {
                ticket: 1,
                authority: 0,
                wait_ms: 0,
                gateway: 1,
                kind,
                second: false,
                body,
            };
            request.encode(&mut packet);
            let arrival = Arrival::Forwards { from: 1, link, packet: packet.into() };
            assert!(sites[1].ferry.push(arrival).is_ok());
            assert!(sites[1].ferry.push(Arrival::Closed { from: 1, link }).is_ok());
        };
        late(link.wrapping_sub(1));
        late(link.wrapping_sub(1 << 30));
        gateway.query(3, 0).await;
        sites[1].sees(3).await;
        sites[1].worker().mode = Mode::Answer;
        let mut answered = Vec::new();
        for _ in 0..3 {
            let (correlation, code, ..) = gateway.answer().await;
            assert_eq!(code, Code::Ok);
            answered.push(correlation);
        }
        answered.sort_unstable();
        assert_eq!(answered, [1, 2, 3]);
        idle(&sites).await;
        assert_eq!(sites[1].worker().seen.len(), 3);
    });
}

#[test]
fn requests_of_a_site_that_is_gone_are_waited_for_no_longer() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(6, 0).await;
        sites[1].sees(1).await;
        assert_eq!(sites[1].net.outstanding.get(), 1);
        let waiter = sites[1].worker().kept[0];
        sites[0].die().await;
        idle(&sites[1..]).await;
        let told = || sites[1].worker().closed.contains(&waiter.connection);
        eventually_async("the engines are told", told).await;
        // Its answer comes too late and is dropped.
        sites[1].worker().mode = Mode::Answer;
        let answered = || sites[1].worker().kept.is_empty();
        eventually_async("it is answered", answered).await;
        assert!(sites[1].is_idle());
    });
}

#[test]
fn a_gateway_that_is_gone_leaves_nothing_behind() {
    with_sites(2, 1_000, |cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(6, 0).await;
        sites[1].sees(1).await;
        drop(gateway);
        idle(&sites[..1]).await;
        // Its answer finds nobody, and harms nobody.
        sites[1].worker().mode = Mode::Answer;
        idle(&sites).await;
        let mut next = Gateway::connect(&cluster, &sites[0]).await;
        next.query(1, 0).await;
        assert_eq!(next.answer().await, (1, Code::Ok, 2, 2, 0));
    });
}

#[test]
fn no_request_makes_a_second_hop() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        // Each believes in the other.
        sites[0].believe(2);
        sites[1].believe(1);
        gateway.query(1, 100).await;
        let (_, code, hint, ..) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NotLeader, 2));
        idle(&sites).await;
        assert!(sites.iter().all(|site| site.worker().seen.is_empty()));
        assert_eq!(sites[1].net.metrics.peer(1).unwrap().forwarded.value(), 0);
        // Refused requests pause before they ask again. (A link that is lost,
        // because the machine stood still, lets them ask at once.)
        let asked = sites[0].net.metrics.peer(2).unwrap().forwarded.value();
        assert!(asked <= 6 || sites[0].mesh.route(2).unwrap().losses() > 0, "{asked}");
    });
}

#[test]
fn a_stopping_leader_takes_no_more_and_finishes_what_it_has() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(1, 0).await;
        sites[1].sees(1).await;
        sites[1].net.draining.set(true);
        gateway.query(2, 0).await;
        let refused = || sites[1].net.metrics.peer(1).unwrap().forwarded_here.value() >= 2;
        eventually_async("the second is refused", refused).await;
        assert!(sites[1].net.outstanding.get() >= 1, "the first is waited for");
        sites[1].worker().mode = Mode::Answer;
        assert_eq!(gateway.answer().await, (1, Code::Ok, 2, 2, 0));
        sites.iter().for_each(|site| site.believe(1));
        assert_eq!(gateway.answer().await, (2, Code::Ok, 0, 1, 0));
        idle(&sites).await;
    });
}

#[test]
fn unanswered_requests_are_bounded_at_both_ends() {
    with_sites(2, 3, |cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        for correlation in 1..=3 {
            gateway.query(correlation, 0).await;
        }
        sites[1].sees(3).await;
        let overloaded = |answer: (u64, Code, u8, i64, u32)| {
            assert_eq!((answer.0, answer.1), (4, Code::Overloaded));
            assert!(answer.4 > 0, "it says when to come back");
        };
        // The asking site's bound, and the leader's for its own gateways.
        gateway.query(4, 0).await;
        overloaded(gateway.answer().await);
        let mut other = Gateway::connect(&cluster, &sites[1]).await;
        other.query(4, 0).await;
        overloaded(other.answer().await);
        // The leader's bound for forwarded ones.
        sites[1].worker().mode = Mode::Answer;
        for _ in 1..=3 {
            assert_eq!(gateway.answer().await.1, Code::Ok);
        }
        idle(&sites).await;
        sites[1].net.outstanding.set(3);
        gateway.query(4, 0).await;
        let answer = gateway.answer().await;
        assert_eq!(answer.2, 2);
        overloaded(answer);
        sites[1].net.outstanding.set(0);
    });
}

#[test]
fn packets_that_cannot_be_read_are_counted_and_harm_nobody() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        let route = sites[0].mesh.route(2).unwrap();
        route.offer_forwards(vec![0xff; 40]).unwrap();
        let metrics = sites[1].net.metrics.peer(1).unwrap();
        eventually_async("it is counted", || metrics.malformed.value() == 1).await;
        sites[1].mesh.route(1).unwrap().offer_answers(vec![0xff; 40]).unwrap();
        let metrics = sites[0].net.metrics.peer(2).unwrap();
        eventually_async("it is counted", || metrics.malformed.value() == 1).await;
        // A request of no known kind, or with a body that is none, is refused.
        for (kind, body) in [(kind::SUBSCRIBE, &b""[..]), (kind::PAY, &b"no"[..])] {
            let mut packet = Vec::new();
            let authority = 0;
            let request =
                Request { ticket: 1, authority, wait_ms: 0, gateway: 1, kind, second: false, body };
            request.encode(&mut packet);
            route.offer_forwards(packet).unwrap();
        }
        let metrics = sites[1].net.metrics.peer(1).unwrap();
        eventually_async("they arrive", || metrics.forwarded_here.value() == 2).await;
        gateway.query(1, 0).await;
        assert_eq!(gateway.answer().await, (1, Code::Ok, 2, 2, 0));
        let only_queries = sites[1].worker().seen.iter().all(|(w, ..)| w.kind == kind::QUERY);
        assert!(only_queries);
        idle(&sites).await;
    });
}

#[test]
fn while_leaders_move_and_links_die_every_request_is_answered_once() {
    const ROUNDS: u64 = 40;
    const PER_ROUND: u64 = 20;
    with_sites(3, 10_000, |cluster, mut sites, mut gateway| async move {
        sites.iter().for_each(|site| site.worker().mode = Mode::Honest);
        let mut answered = vec![0; (ROUNDS * PER_ROUND) as usize];
        for round in 0..ROUNDS {
            for correlation in round * PER_ROUND..(round + 1) * PER_ROUND {
                gateway.query(correlation, 0).await;
            }
            // The sites learn of a new leader one after the other, in turns.
            let leader = (round * 7 % 3) as u8 + 1;
            for offset in 0..3 {
                sites[(round + offset) as usize % 3].believe(leader);
                tokio::task::yield_now().await;
            }
            let victim = 1 + (round / 10) as usize % 2;
            match round % 10 {
                4 => sites[victim].die().await,
                6 => sites[victim].revive(&cluster),
                _ => {}
            }
            for _ in 0..PER_ROUND / 2 {
                let (correlation, code, ..) = gateway.answer().await;
                assert!(matches!(code, Code::Ok | Code::NotLeader | Code::NoLeader), "{code:?}");
                answered[correlation as usize] += 1;
            }
        }
        sites.iter().for_each(|site| site.believe(1));
        for _ in 0..ROUNDS * PER_ROUND / 2 {
            let (correlation, ..) = gateway.answer().await;
            answered[correlation as usize] += 1;
        }
        assert!(answered.iter().all(|times| *times == 1), "{answered:?}");
        idle(&sites).await;
        // No second answer was on its way: the next frame answers the next request.
        gateway.query(u64::MAX, 0).await;
        assert_eq!(gateway.answer().await.0, u64::MAX);
    });
}
