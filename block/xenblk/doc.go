// Package xenblk is the back end of a Xen guest's disk ("vbd") in user space: what xen-blkback does in Linux, or QEMU for
// a qdisk, over the kernel's devices gntdev, evtchn and xenbus.
//
// A guest and its back end share rings of requests. Pages of the guest's memory are reached by grant: they are copied by
// the hypervisor, each request's once, or are mapped and stay so where the front end says that it uses the same ones again
// (persistent grants). A request is copied out of the ring before it is looked at, and what is stored is what the Observer
// gets.
//
// Answers are given in the order of the requests. So the ring itself says what is not answered yet, and a back end that is
// killed and started again goes on where the last one was: to the guest this is a pause. What was answered is in the host's
// page cache by then, and what was answered behind a flush is on the disk.
//
// Offered: rings of up to 16 pages, several queues, indirect segments, persistent grants, flush, discard; the layouts of
// 64-bit and 32-bit guests. Barriers are understood.
//
// All that a guest wrote is hostile, in the store as well as in the ring. A request that makes no sense is answered with an
// error; a ring that makes no sense ends the connection.
//
// Sources: xen/include/public/io/blkif.h, ring.h and xenbus.h; Linux drivers/block/xen-blkback, include/uapi/xen/gntdev.h
// and evtchn.h.
package xenblk
