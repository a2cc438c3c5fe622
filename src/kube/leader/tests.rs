//! Elections against an API server that is played: it keeps one Lease, and refuses or hangs when told to. Time is paused, so that
//! what happens when is exact.

use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tower::{BoxError, service_fn};

use super::*;

const TERMS: Terms = Terms { duration: Duration::from_secs(15) };

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Refuses,
    Hangs,
}

struct State {
    lease: Option<Value>,
    version: u64,
    mood: Mood,
    requests: usize,
}

#[derive(Clone)]
struct Server(Arc<Mutex<State>>);

impl Server {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State { lease: None, version: 0, mood: Mood::Answers, requests: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn turn(&self, mood: Mood) {
        self.state().mood = mood;
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let answer = move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect().await?.to_bytes();
                let mood = server.state().mood;
                server.state().requests += 1;
                match mood {
                    Mood::Hangs => std::future::pending().await,
                    Mood::Refuses => Err(BoxError::from("connection refused")),
                    Mood::Answers => Ok(server.answer(&method, &body)),
                }
            }
        };
        Client::new(service_fn(answer), "default")
    }

    fn answer(&self, method: &Method, body: &[u8]) -> Response<Body> {
        let mut state = self.state();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let version = state.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        match (method, version) {
            (&Method::GET | &Method::PUT, None) => return refusal(StatusCode::NOT_FOUND, "NotFound"),
            (&Method::POST, Some(_)) => return refusal(StatusCode::CONFLICT, "AlreadyExists"),
            (&Method::PUT, Some(version)) if sent["metadata"]["resourceVersion"] != version => {
                return refusal(StatusCode::CONFLICT, "Conflict");
            }
            (&Method::PUT | &Method::POST, _) => {
                state.version += 1;
                let mut lease = sent;
                lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
                state.lease = Some(lease);
            }
            _ => {}
        }
        Response::new(Body::from(state.lease.clone().unwrap().to_string().into_bytes()))
    }

    fn candidate(&self, identity: &str) -> Election {
        Election::new(self.client(), "system", "leader", identity, TERMS)
    }

    fn holder(&self) -> String {
        self.state().lease.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response<Body> {
    let status =
        json!({ "kind": "Status", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16() });
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = code;
    response
}

/// Keeps the leadership for `seconds`; why it was lost meanwhile, if it was.
async fn keep_for(leadership: &mut Leadership, seconds: u64) -> Option<Error> {
    timeout(Duration::from_secs(seconds), leadership.keep()).await.ok()
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_for_less_than_the_deadline_costs_no_leadership() {
    for mood in [Mood::Refuses, Mood::Hangs] {
        let server = Server::new();
        let mut leadership = server.candidate("a").win().await;
        let mandate = leadership.mandate().clone();
        let keeping = tokio::spawn(async move { leadership.keep().await });
        // Of every length, and beginning at every moment between two renewals.
        for (outage, between) in [(1, 10_300), (2, 10_700), (3, 11_100), (4, 11_500), (4, 10_900)] {
            server.turn(mood);
            sleep(Duration::from_secs(outage)).await;
            server.turn(Mood::Answers);
            sleep(Duration::from_millis(between)).await;
            assert!(mandate.holds() && !keeping.is_finished(), "{outage} s");
        }
        keeping.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_may_begin() {
    for mood in [Mood::Refuses, Mood::Hangs] {
        let server = Server::new();
        let mut leadership = server.candidate("a").win().await;
        let rival = server.candidate("b");
        let rival = tokio::spawn(async move { (rival.win().await, Instant::now()) });
        assert!(keep_for(&mut leadership, 60).await.is_none());
        let (began, before) = (Instant::now(), server.state().requests);
        server.turn(mood);
        let lost = leadership.keep().await;
        assert!(matches!(lost, Error::LeadershipLost(_)), "{lost}");
        let acted = began.elapsed();
        assert!(!leadership.mandate().holds());
        assert!(acted <= TERMS.deadline() && acted + TERMS.period() >= TERMS.deadline(), "{acted:?}");
        // It and its rival: one that refuses is asked all the time, one that hangs more than once.
        let tries = server.state().requests - before;
        assert!(tries >= if mood == Mood::Hangs { 3 } else { 6 }, "{tries} requests");
        server.turn(Mood::Answers);
        let (heir, at) = rival.await.unwrap();
        assert!(at.duration_since(began) > acted);
        assert_eq!(server.holder(), "b");
        // The one that lost stands again, and waits as everybody does.
        let again = tokio::spawn({
            let election = leadership.election.clone();
            async move { election.win().await }
        });
        sleep(Duration::from_secs(1)).await;
        assert!(!again.is_finished());
        heir.release().await;
        assert!(again.await.unwrap().mandate().holds());
        assert_eq!(server.holder(), "a");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_touched_is_kept_and_one_that_was_taken_or_deleted_is_lost() {
    let server = Server::new();
    let mut leadership = server.candidate("a").win().await;
    let touch = |holder: &str| {
        let mut state = server.state();
        state.version += 1;
        let version = json!(state.version.to_string());
        let lease = state.lease.as_mut().unwrap();
        lease["metadata"]["resourceVersion"] = version;
        lease["spec"]["holderIdentity"] = json!(holder);
    };
    touch("a");
    assert!(keep_for(&mut leadership, 60).await.is_none());
    touch("b");
    let lost = keep_for(&mut leadership, 3).await.expect("it is noticed by the next renewal");
    assert!(lost.to_string().contains("b leads now") && !leadership.mandate().holds(), "{lost}");
    server.state().lease = None;
    let mut leadership = server.candidate("a").win().await;
    server.state().lease = None;
    let lost = keep_for(&mut leadership, 3).await.expect("whoever makes it anew leads at once");
    assert!(lost.to_string().contains("deleted") && !leadership.mandate().holds(), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_beyond_the_deadline() {
    let server = Server::new();
    let leadership = server.candidate("a").win().await;
    let acting: Api<Lease> = Api::namespaced(leadership.mandate().guard(server.client()), "system");
    let write = async || {
        let lease = acting.get("leader").await.expect("reading harms nobody");
        acting.replace("leader", &PostParams::default(), &lease).await
    };
    write().await.unwrap();
    // As after a pause of the whole process: nobody has noticed yet that time has passed.
    tokio::time::advance(TERMS.deadline()).await;
    let before = server.state().version;
    let error = write().await.unwrap_err().to_string();
    assert!(error.contains("leadership lost") && error.contains("PUT"), "{error}");
    assert_eq!(server.state().version, before);
    // A renewal that was late changes nothing once the mandate was declared to have ended.
    leadership.mandate().extend(Instant::now() + TERMS.deadline());
    write().await.unwrap();
    leadership.mandate().end();
    leadership.mandate().extend(Instant::now() + TERMS.deadline());
    assert!(write().await.is_err());
}
