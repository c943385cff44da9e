// Package nbd speaks the NBD protocol, as server and as client.
//
// The server takes what a VMM writes to a disk (QEMU's -blockdev driver=nbd, or its mirror job) straight to where a device
// wants it; see Server for that path and PayloadWriter, Flusher and their kin for what a device may be able to do. File is
// a raw image or a block device as such a device; a Client is one too, so that an export can be forwarded.
//
// The client is a block.Device over a connection that any number of goroutines may use at once.
//
// Source: the protocol's specification, doc/proto.md of https://github.com/NetworkBlockDevice/nbd.
package nbd
