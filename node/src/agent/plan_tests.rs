use super::*;
use proptest::prelude::*;

fn want(goal: Goal) -> Want {
    Want {
        generation: 3,
        goal,
        starts: 2,
        reboots: 1,
        volumes: Volumes::Ready,
        host_stopping: false,
    }
}

fn page() -> Page {
    Page {
        starts: 2,
        stores: true,
        ended: None,
    }
}

fn running() -> Seen {
    Seen {
        page: Some(page()),
        run: Some(Run {
            starts: 2,
            reboots: 1,
            up: true,
            vmm: Vmm::Alive,
            told: Some(3),
            asked: None,
        }),
        retry_at: None,
        been_up: Some(2),
    }
}

fn dead(words: Option<ExitReason>) -> Seen {
    let mut seen = running();
    seen.run.as_mut().unwrap().vmm = Vmm::Dead(words.map(|reason| ExitRecord {
        transmit_credits: None,
        reason,
        message: "words".into(),
    }));
    seen
}

#[test]
fn what_runs_as_wanted_rests_and_is_up() {
    let (want, seen) = (want(Goal::Run), running());
    assert_eq!(plan(&want, &seen, Instant::now()), Step::Rest);
    assert_eq!(observe(&want, &seen).phase, Phase::Up);
    assert_eq!(observe(&want, &seen).reboots, 1);
}

#[test]
fn a_change_of_attributes_is_published_and_interrupts_nothing() {
    let want = Want {
        generation: 4,
        ..want(Goal::Run)
    };
    assert_eq!(plan(&want, &running(), Instant::now()), Step::Publish);
    assert_eq!(observe(&want, &running()).phase, Phase::Up);
}

#[test]
fn a_stop_presses_then_asks_then_kills_and_waits_in_between() {
    let (want, mut seen, now) = (want(Goal::Stop), running(), Instant::now());
    let later = now + Duration::from_secs(1);
    assert_eq!(plan(&want, &seen, now), Step::Ask(Ask::Power));
    for (asked, next) in [
        (Ask::Power, Ask::Stop),
        (Ask::Stop, Ask::Kill),
        (Ask::Kill, Ask::Kill),
    ] {
        seen.run.as_mut().unwrap().asked = Some((asked, later));
        assert_eq!(plan(&want, &seen, now), Step::WaitUntil(later));
        assert_eq!(plan(&want, &seen, later), Step::Ask(next));
    }
    assert_eq!(observe(&want, &seen).phase, Phase::Stopping);
    // Nobody is there to press a button for.
    seen.run.as_mut().unwrap().asked = None;
    seen.run.as_mut().unwrap().up = false;
    assert_eq!(plan(&want, &seen, now), Step::Ask(Ask::Stop));
}

#[test]
fn each_end_has_ec2s_reason_and_a_reset_has_none() {
    let want = want(Goal::Run);
    for (words, reason) in [
        (
            Some(ExitReason::GuestShutdown),
            "Client.InstanceInitiatedShutdown",
        ),
        (Some(ExitReason::Error), "Server.InternalError"),
        (Some(ExitReason::Stopped), "Server.InternalError"),
        (None, "Server.InternalError"),
    ] {
        let Step::End(end) = plan(&want, &dead(words), Instant::now()) else {
            panic!("{words:?}");
        };
        assert_eq!((end.reason_code.as_str(), end.failed), (reason, false));
        assert_eq!(end.starts, 2);
    }
    let reset = dead(Some(ExitReason::GuestReset));
    assert_eq!(plan(&want, &reset, Instant::now()), Step::Clear);
    assert_eq!(observe(&want, &reset).phase, Phase::Up);
}

#[test]
fn what_never_came_up_failed_and_a_booted_host_is_nobodys_fault() {
    let want = want(Goal::Run);
    let mut seen = dead(Some(ExitReason::Error));
    seen.been_up = None;
    let Step::End(end) = plan(&want, &seen, Instant::now()) else {
        panic!("no end");
    };
    assert!(end.failed);
    seen.page.as_mut().unwrap().ended = Some(end);
    seen.run = None;
    assert_eq!(plan(&want, &seen, Instant::now()), Step::Erase);
    seen.page.as_mut().unwrap().stores = false;
    assert_eq!(plan(&want, &seen, Instant::now()), Step::Rest);
    assert_eq!(observe(&want, &seen).phase, Phase::Failed);

    let mut seen = running();
    seen.run.as_mut().unwrap().vmm = Vmm::Absent;
    assert_eq!(plan(&want, &seen, Instant::now()), Step::Clear);
    seen.run = None;
    assert_eq!(plan(&want, &seen, Instant::now()), Step::Launch);
}

#[test]
fn a_reboot_keeps_the_stores_and_a_new_start_does_not() {
    let now = Instant::now();
    let reboot = Want {
        reboots: 2,
        ..want(Goal::Run)
    };
    assert_eq!(plan(&reboot, &running(), now), Step::Ask(Ask::Power));
    let off = dead(Some(ExitReason::GuestShutdown));
    assert_eq!(plan(&reboot, &off, now), Step::Clear);
    let cleared = Seen { run: None, ..off };
    assert_eq!(plan(&reboot, &cleared, now), Step::Launch);
    assert_eq!(observe(&reboot, &cleared).phase, Phase::Up);

    let start = Want {
        starts: 3,
        ..want(Goal::Run)
    };
    assert_eq!(plan(&start, &running(), now), Step::Ask(Ask::Power));
    assert_eq!(plan(&start, &cleared, now), Step::Erase);
    assert_eq!(observe(&start, &cleared).phase, Phase::Starting);
}

#[test]
fn a_stopping_host_ends_each_start_first_of_all() {
    let stopping = Want {
        host_stopping: true,
        ..want(Goal::Run)
    };
    for mut seen in [running(), Seen::default()] {
        let Step::End(end) = plan(&stopping, &seen, Instant::now()) else {
            panic!("{seen:?}");
        };
        assert_eq!(
            (end.reason_code.as_str(), end.failed),
            ("Server.ScheduledStop", false)
        );
        seen.page = Some(Page {
            ended: Some(end),
            ..page()
        });
        let next = plan(&stopping, &seen, Instant::now());
        assert!(
            matches!(next, Step::Ask(Ask::Power) | Step::Erase),
            "{next:?}"
        );
        // The next node, on a host that is up again, does not start it.
        seen.run = None;
        seen.page.as_mut().unwrap().stores = false;
        let want = want(Goal::Run);
        assert_eq!(plan(&want, &seen, Instant::now()), Step::Rest);
        let told = observe(&want, &seen);
        assert_eq!(
            (told.phase, told.reason_code.as_str()),
            (Phase::Down, "Server.ScheduledStop")
        );
        // Until somebody starts it.
        let again = Want { starts: 3, ..want };
        assert_eq!(plan(&again, &seen, Instant::now()), Step::Launch);
    }
}

#[test]
fn a_launch_waits_for_volumes_and_for_its_turn() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let mut seen = Seen::default();
    let unready = Want {
        volumes: Volumes::Pending,
        ..want(Goal::Run)
    };
    assert_eq!(plan(&unready, &seen, now), Step::Rest);
    assert_eq!(observe(&unready, &seen).phase, Phase::Starting);
    seen.retry_at = Some(later);
    assert_eq!(plan(&want(Goal::Run), &seen, now), Step::WaitUntil(later));
    assert_eq!(plan(&want(Goal::Run), &seen, later), Step::Launch);
    let refused = Want {
        volumes: Volumes::Refused,
        ..want(Goal::Run)
    };
    let Step::End(end) = plan(&refused, &seen, now) else {
        panic!("it waits for what will never be");
    };
    assert!(end.failed);
    // What runs already has what it needs.
    assert_eq!(plan(&refused, &running(), now), Step::Rest);
}

/// What a step does to the world, told as simply as can be.
fn act(want: &Want, seen: &mut Seen, step: &Step, now: &mut Instant) {
    match step {
        Step::Rest => {}
        Step::WaitUntil(at) => *now = *at,
        Step::Launch => {
            assert!(seen.run.is_none(), "a second run");
            seen.page = Some(Page {
                starts: want.starts,
                stores: true,
                ended: None,
            });
            seen.run = Some(Run {
                starts: want.starts,
                reboots: want.reboots,
                up: false,
                vmm: Vmm::Alive,
                told: None,
                asked: None,
            });
        }
        Step::Confirm => {
            seen.run.as_mut().unwrap().up = true;
            seen.been_up = Some(want.starts);
        }
        Step::Publish => seen.run.as_mut().unwrap().told = Some(want.generation),
        Step::Ask(Ask::Kill) => seen.run.as_mut().unwrap().vmm = Vmm::Dead(None),
        Step::Ask(ask) => {
            seen.run.as_mut().unwrap().asked = Some((*ask, *now + Duration::from_secs(1)));
        }
        Step::End(end) => {
            let page = seen.page.get_or_insert(Page {
                starts: 0,
                stores: false,
                ended: None,
            });
            page.ended = Some(end.clone());
        }
        Step::Clear => {
            let run = seen.run.take().unwrap();
            assert_ne!(
                run.vmm,
                Vmm::Alive,
                "the ground was pulled from under a VMM"
            );
        }
        Step::Erase => {
            assert!(seen.run.is_none(), "stores of a run were erased");
            seen.page.as_mut().unwrap().stores = false;
        }
        Step::Forget => {
            assert!(seen.run.is_none(), "a run was forgotten");
            *seen = Seen::default();
        }
    }
}

prop_compose! {
    fn any_want()(
        goal in prop_oneof![Just(Goal::Run), Just(Goal::Stop), Just(Goal::Absent)],
        volumes in prop_oneof![Just(Volumes::Ready), Just(Volumes::Refused)],
        generation in 1u64..4, starts in 1u64..3, reboots in 0u64..3, host_stopping: bool,
    ) -> Want {
        Want { generation, goal, starts, reboots, volumes, host_stopping }
    }
}

fn any_vmm() -> impl Strategy<Value = Vmm> {
    let words = |reason| {
        Just(Vmm::Dead(Some(ExitRecord {
            transmit_credits: None,
            reason,
            message: String::new(),
        })))
    };
    prop_oneof![
        Just(Vmm::Absent),
        Just(Vmm::Alive),
        Just(Vmm::Dead(None)),
        words(ExitReason::GuestReset),
        words(ExitReason::GuestShutdown),
        words(ExitReason::Error),
    ]
}

prop_compose! {
    fn any_seen()(
        paged: bool, stores: bool, starts in 0u64..3, ended in proptest::option::of(1u64..3),
        run in proptest::option::of((0u64..3, 0u64..3, any::<bool>(), any_vmm())),
        been_up in proptest::option::of(1u64..3),
    ) -> Seen {
        Seen {
            page: (paged || run.is_some()).then(|| Page {
                starts,
                stores,
                ended: ended.map(|starts| End {
                    starts,
                    failed: false,
                    reason_code: "Server.InternalError".into(),
                    message: String::new(),
                }),
            }),
            run: run.map(|(starts, reboots, up, vmm)| Run {
                starts, reboots, up, vmm, told: None, asked: None,
            }),
            retry_at: None,
            been_up,
        }
    }
}

proptest! {
    /// From any state, steps lead to rest, and rest is what was wanted.
    #[test]
    fn any_state_converges(want in any_want(), mut seen in any_seen()) {
        let mut now = Instant::now();
        let mut steps = Vec::new();
        loop {
            let step = plan(&want, &seen, now);
            if step == Step::Rest {
                break;
            }
            act(&want, &mut seen, &step, &mut now);
            steps.push(step);
            prop_assert!(steps.len() < 20, "no rest after {steps:?}");
        }
        let told = observe(&want, &seen);
        match want.goal {
            Goal::Absent => {
                prop_assert!(seen.run.is_none() && seen.page.is_none());
                prop_assert_eq!(told.phase, Phase::Gone);
            }
            Goal::Stop => {
                prop_assert!(seen.run.is_none());
                prop_assert_eq!(told.phase, Phase::Down);
            }
            Goal::Run if told.phase == Phase::Up => {
                let run = seen.run.as_ref().unwrap();
                prop_assert!(!want.host_stopping && run.vmm == Vmm::Alive);
                prop_assert_eq!((run.starts, run.reboots), (want.starts, want.reboots));
                prop_assert_eq!(run.told, Some(want.generation));
            }
            Goal::Run => {
                // It ended of itself, and says why.
                prop_assert!(seen.run.is_none() && !told.reason_code.is_empty());
                prop_assert!(seen.page.as_ref().is_some_and(|page| !page.stores));
            }
        }
    }
}
