package guestlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"vmscope/internal/guestlab/wire"
)

// What a guest can be asked to do with file systems, and what it tells of them; see package wire for the fields.
type (
	FSOps   = wire.FSOps
	KeptDir = wire.KeptDir
	File    = wire.File
	Load    = wire.Load
)

// Mount mounts a disk's file system in the guest, with options as for mount(8). The device is a path in the guest.
func (a *Agent) Mount(ctx context.Context, device, dir, fstype, options string) error {
	_, err := a.call(ctx, &wire.Request{Mounting: &wire.Mounting{Device: device, Dir: dir, Type: fstype, Options: options}})
	return err
}

// Unmount unmounts what Mount did.
func (a *Agent) Unmount(ctx context.Context, dir string) error {
	_, err := a.call(ctx, &wire.Request{Mounting: &wire.Mounting{Dir: dir, Unmount: true}})
	return err
}

// FSOps does random file operations and returns, if asked to tell, the list of them.
func (a *Agent) FSOps(ctx context.Context, ops FSOps) (list string, err error) {
	out, err := a.call(ctx, &wire.Request{FSOps: &ops})
	return string(out), err
}

// Load does a load and gives the time from its first system call to the end of its last, by the guest's own clock.
func (a *Agent) Load(ctx context.Context, l Load) (time.Duration, error) {
	out, err := a.call(ctx, &wire.Request{Load: &l})
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseInt(string(out), 10, 64)
	return time.Duration(ns), err
}

// FSTree tells all files below a directory, by the guest's own system calls: each directory before what is in it, names
// in byte order, with the hash of each regular file's content. Locked takes the key of encrypted directories away for
// that while, so that the names are those that the kernel makes up from the encrypted ones.
func (a *Agent) FSTree(ctx context.Context, dir string, locked bool) ([]File, error) {
	out, err := a.call(ctx, &wire.Request{FSTree: &wire.FSTree{Dir: []byte(dir), Content: true, Locked: locked}})
	if err != nil {
		return nil, err
	}
	var list []File
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var f File
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("guestlab: tree of %s: %w", dir, err)
		}
		list = append(list, f)
	}
}

// logMagic is WRITE_LOG_MAGIC of drivers/md/dm-log-writes.c; the log's super block is magic, version, entries (u64 each)
// and sector size (u32), little endian.
const logMagic = 0x6a736677736872

// LogEntries is how many writes the log of a disk holds at this moment (see Disk.Log).
func LogEntries(log string) (uint64, error) {
	f, err := os.Open(log)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var super [28]byte
	if _, err := f.ReadAt(super[:], 0); errors.Is(err, io.EOF) {
		return 0, nil // nothing was written yet
	} else if err != nil {
		return 0, err
	}
	if magic := binary.LittleEndian.Uint64(super[:]); magic != logMagic {
		return 0, fmt.Errorf("guestlab: %s begins with %#x: no log of writes", log, magic)
	}
	return binary.LittleEndian.Uint64(super[16:]), nil
}
