// Package vhostuser is a back end for QEMU's vhost-user-blk and its kin: a virtio block device whose rings and buffers
// lie in the guest's memory, which the front end shares with us. It is the cheapest way to stand in a disk's path, for
// guests that were started for it:
//
//	-object memory-backend-memfd,id=ram,size=2G,share=on -machine q35,memory-backend=ram
//	-chardev socket,id=tap,path=SOCK,reconnect=1 -device vhost-user-blk-pci,chardev=tap
//
// The back end listens (Server.Serve). What the guest writes is handed to a block.Observer with the same bytes that go to the
// disk, and before the guest hears that it was written. The front end's memory table is the guest's whole memory: see
// Server.Memory.
//
// A back end that is killed and started again goes on where the last one was: what was in flight is noted in memory that
// the front end keeps. To the guest this is a pause.
//
// Not offered: packed rings, an IOMMU, a change of the disk's size while it is served, and the log of dirty memory
// without which QEMU does not migrate the guest.
//
// All in the guest's memory is hostile. A request that makes no sense is answered with an error where it says where to;
// a ring that makes no sense is given up, and the guest has lost its disk until it resets it.
//
// Sources: QEMU's docs/interop/vhost-user.rst; virtio 1.2, sections 2.7 (split virtqueues) and 5.2 (block device).
package vhostuser
