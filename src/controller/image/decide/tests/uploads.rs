//! Images whose bytes somebody sends.

use super::{kstatus, ready, world::World};
use crate::api::{ImagePhase, Source, UploadSource};

const URL: &str = "https://vitrine-data.vitrine-system.svc/v1/namespaces/tenant/images/debian/data";

#[test]
fn an_upload_is_waited_for_at_a_place_that_status_names() {
    let sum = format!("sha256:{}", "0".repeat(64));
    let mut world = World::new(&["a"], &["fast"]);
    let upload = UploadSource { checksum: Some(sum.clone()) };
    world.edit(|spec| spec.source = Source { http: None, upload: Some(upload) });
    world.step();
    let order = world.only_task().spec.import.clone().unwrap();
    assert!(order.source.http.is_none() && order.source.upload.is_some() && order.checksum_url.is_none());
    assert_eq!(order.checksums, [sum]);

    world.agent_runs(0);
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("InProgress", ImagePhase::Queued), "nothing has come");
    assert_eq!(world.status().upload.unwrap().url, URL);
    assert!(ready(&world).1.contains(&format!("waits for its bytes: send them to {URL}")), "{}", ready(&world).1);

    world.agent_runs(40);
    world.step();
    assert_eq!(world.phase(), ImagePhase::Importing);
    assert_eq!(world.status().upload.unwrap().url, URL, "it may be cut, and go on");

    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((kstatus(&world), world.phase(), world.status().upload), ("Current", ImagePhase::Active, None));
    assert!(world.is_settled());
}

#[test]
fn a_deactivated_image_is_kept_and_says_that_it_is() {
    let mut world = World::active(&["a"], &["fast"]);
    world.edit(|spec| spec.deactivated = true);
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("Current", ImagePhase::Deactivated));
    assert_eq!((world.tasks.len(), world.status().locations.len()), (0, 1));
    world.edit(|spec| spec.deactivated = false);
    world.step();
    assert_eq!(world.phase(), ImagePhase::Active);
}
