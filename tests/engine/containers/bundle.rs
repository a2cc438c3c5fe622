//! ploop bundles in a tar: the image that the descriptor names, and nothing else.

use std::fs;

use vitrine_engine::model::{ContainerFormat, DiskFormat, Rule};
use vitrine_harness::qemu::qemu_img;

use super::{
    package::{Package, refusal},
    truth::assert_disk,
};
use crate::support::disk;

const SIZE: usize = 9 << 20;
const GUID: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";

fn descriptor(file: &str, kind: &str) -> String {
    format!(
        "<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version=\"1.0\">
  <Disk_Parameters><Disk_size>{sectors}</Disk_size><Cylinders>18</Cylinders><PhysicalSectorSize>4096</PhysicalSectorSize>
    <Heads>16</Heads><Sectors>32</Sectors><Padding>0</Padding>
    <Encryption><Engine>{{00000000-0000-0000-0000-000000000000}}</Engine><Data></Data></Encryption></Disk_Parameters>
  <StorageData><Storage><Start>0</Start><End>{sectors}</End><Blocksize>2048</Blocksize>
    <Image><GUID>{GUID}</GUID><Type>{kind}</Type><File>{file}</File></Image></Storage></StorageData>
  <Snapshots><TopGUID>{GUID}</TopGUID><Shot><GUID>{GUID}</GUID>
    <ParentGUID>{{00000000-0000-0000-0000-000000000000}}</ParentGUID></Shot></Snapshots>
</Parallels_disk_image>",
        sectors = SIZE / 512,
    )
}

/// A bundle in a folder of its own, with these members in this order.
fn bundle(text: &str, order: [&str; 2]) -> Package {
    let mut package = Package::new();
    fs::create_dir(package.path("root.hdd")).unwrap();
    let raw = package.path("raw");
    fs::write(&raw, disk(SIZE)).unwrap();
    let image = package.path("root.hdd/root.hds");
    qemu_img(&["convert", "-f", "raw", "-O", "parallels", raw.to_str().unwrap(), image.to_str().unwrap()]).unwrap();
    fs::write(package.path("root.hdd/DiskDescriptor.xml"), text).unwrap();
    package.members = order.map(|name| format!("root.hdd/{name}")).to_vec();
    package
}

const ORDERS: [[&str; 2]; 2] = [["DiskDescriptor.xml", "root.hds"], ["root.hds", "DiskDescriptor.xml"]];

#[tokio::test(flavor = "multi_thread")]
async fn the_image_that_the_descriptor_names_is_the_disk() {
    for order in ORDERS {
        let mut package = bundle(&descriptor("root.hds", "Compressed"), order);
        let archive = package.tar(&[]);
        assert_disk(&archive, ContainerFormat::Compressed, None, &disk(SIZE)).await;
        // Beside it lie what the hypervisor leaves there, and another disk.
        package.add("other.img", disk(SIZE / 2));
        let name = Some("DiskDescriptor.xml");
        assert_disk(&package.tar(&[]), ContainerFormat::Compressed, name, &disk(SIZE)).await;
        fs::write(package.path("root.hdd/DiskDescriptor.xml"), descriptor("root.hds", "Plain")).unwrap();
        fs::write(package.path("root.hdd/root.hds"), disk(SIZE)).unwrap();
        package.members.pop();
        assert_disk(&package.tar(&[]), ContainerFormat::Compressed, None, &disk(SIZE)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_format_is_that_of_the_image() {
    let archive = bundle(&descriptor("root.hds", "Compressed"), ORDERS[1]).tar(&[]);
    let (result, _) = super::package::imported(&archive, super::package::WAYS[0], |_| {}).await;
    assert_eq!(result.unwrap().disk_format, DiskFormat::Ploop);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_descriptor_may_not_say() {
    let good = descriptor("root.hds", "Compressed");
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let snapshot =
        format!("<Image><GUID>{{1}}</GUID><Type>Compressed</Type><File>base.hds</File></Image><Image><GUID>{GUID}");
    let parent = "<ParentGUID>{00000000-0000-0000-0000-000000000000}";
    let engine = "<Engine>{00000000-";
    for (text, rule, field, value) in [
        (replaced(&format!("<Image><GUID>{GUID}"), &snapshot), Rule::BackingFile, "Image", "2"),
        (replaced("<Shot>", "<Shot><GUID>{1}</GUID></Shot><Shot>"), Rule::BackingFile, "Shot", "2"),
        (replaced(parent, "<ParentGUID>{17}"), Rule::BackingFile, "ParentGUID", "{17}"),
        (replaced(&format!("<TopGUID>{GUID}"), "<TopGUID>{2}"), Rule::InvalidField, "TopGUID", "{2}"),
        (replaced(engine, "<Engine>{10000000-"), Rule::Encrypted, "Engine", "{10000000-0000-0000-0000-000000000000}"),
        (replaced("<File>root.hds", "<File>/etc/passwd"), Rule::ExternalDataFile, "File", "/etc/passwd"),
        (replaced("<File>root.hds", "<File>../root.hds"), Rule::ExternalDataFile, "File", "../root.hds"),
        (replaced("<File>root.hds", "<File>.."), Rule::ExternalDataFile, "File", ".."),
        (replaced("<File>root.hds", "<File>other.hds"), Rule::ExternalDataFile, "File", "other.hds"),
        (replaced("<Blocksize>2048", "<Blocksize>1024"), Rule::InvalidField, "Blocksize", "1024"),
        (replaced("<Type>Compressed", "<Type>Plain"), Rule::InvalidField, "Type", "Plain"),
        (replaced("<Type>Compressed", "<Type>Other"), Rule::UnsupportedFormat, "Type", "Other"),
        (replaced("<End>18432", "<End>18431"), Rule::InvalidField, "End", "18431"),
        (replaced("<Start>0", "<Start>x"), Rule::InvalidField, "Start", "x"),
        (good.replace("18432", "18431"), Rule::InvalidField, "Disk_size", "18431"),
        (replaced("<StorageData>", "<StorageData><Storage/>"), Rule::UnsupportedFormat, "Storage", "2"),
        (good.replace("Parallels_disk_image", "html"), Rule::InvalidField, "DiskDescriptor.xml", "html"),
        (
            replaced("<Padding>", "<LogicSectorSize>4096</LogicSectorSize><Padding>"),
            Rule::UnsupportedFormat,
            "LogicSectorSize",
            "4096",
        ),
        (
            replaced("?>", "?><!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]>"),
            Rule::InvalidField,
            "DiskDescriptor.xml",
            "byte 38",
        ),
    ] {
        for order in ORDERS {
            let archive = bundle(&text, order).tar(&[]);
            assert_eq!(refusal(&archive, true).await, (rule, field.to_owned()), "{order:?} {text}");
            let inspection = super::package::inspected(&archive, super::package::WAYS[0], |_| {}).await;
            assert!(inspection.reasons.iter().any(|reason| reason.value == value), "{value}: {:?}", inspection.reasons);
        }
    }
}
