package tap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"vmscope/block/vhostuser"
	"vmscope/mem"
)

// region is a part of a guest's memory on the control line. File is the number of its file among those of the message.
type region struct {
	PA     mem.PA `json:"pa"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
	File   int    `json:"file"`
}

// maxFiles is how many descriptors a message can carry: SCM_MAX_FD of Linux's include/net/scm.h.
const maxFiles = 253

// packRegions makes the message that tells of a guest's memory, with each file once.
func packRegions(list []vhostuser.Region) (m message, err error) {
	m.Kind = msgRegions
	var known []os.FileInfo
	for _, r := range list {
		st, err := r.File.Stat()
		if err != nil {
			return m, err
		}
		i := slices.IndexFunc(known, func(k os.FileInfo) bool { return os.SameFile(k, st) })
		if i < 0 {
			i = len(known)
			known, m.files = append(known, st), append(m.files, r.File)
		}
		m.Regions = append(m.Regions, region{r.PA, r.Size, r.Offset, i})
	}
	if len(known) > maxFiles {
		return m, fmt.Errorf("guest memory in %d files: %w", len(known), errors.ErrUnsupported)
	}
	return m, nil
}

// unpackRegions opens what packRegions packed. The message's files are closed.
func unpackRegions(m message) (list []vhostuser.Region, err error) {
	defer m.close()
	if err := unpack(m); err != nil {
		return nil, err
	}
	for _, r := range m.Regions {
		var f *os.File
		err := fmt.Errorf("no file %d among %d", r.File, len(m.files))
		if r.File >= 0 && r.File < len(m.files) {
			f, err = duplicate(m.files[r.File])
		}
		if err != nil {
			for _, r := range list {
				r.File.Close()
			}
			return nil, err
		}
		list = append(list, vhostuser.Region{PA: r.PA, Size: r.Size, Offset: r.Offset, File: f})
	}
	return list, nil
}

// regions answers the reader's question for the guest's memory.
func (r *receiver) regions(gen uint32) {
	r.mu.Lock()
	ask := r.memory
	r.mu.Unlock()
	err := fmt.Errorf("memory of a guest: it is not served by vhost-user: %w", errors.ErrUnsupported)
	var list []vhostuser.Region
	if ask != nil {
		list, err = ask()
	}
	var m message
	if err == nil {
		m, err = packRegions(list)
	}
	if err != nil {
		m = pack(msgRegions, err)
	}
	m.Gen = gen
	r.ctl.send(m)
	for _, x := range list {
		x.File.Close()
	}
}

// regionsPatience is how long the receiver may take to answer.
const regionsPatience = 2 * time.Second

// Regions is the memory of the guest whose disk is served by vhost-user, as its front end shares it for that: there, the
// guest's memory is read without any other access. The files are the caller's to close; vhostuser.OpenMemory takes them. It is
// an error as long as no front end is connected, and of the class errors.ErrUnsupported by other protocols.
func (t *Tap) Regions(ctx context.Context) ([]vhostuser.Region, error) {
	ctx, cancel := context.WithTimeout(ctx, regionsPatience)
	defer cancel()
	t.asking.Lock()
	defer t.asking.Unlock()
	t.mu.Lock()
	t.question++
	gen := t.question
	err := t.ctl.send(message{Kind: msgRegions, Gen: gen})
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var answer message
	if err := t.await(ctx, func() bool {
		answer = t.answer
		return answer.Gen == gen
	}); err != nil {
		return nil, fmt.Errorf("memory of the guest of %s: %w", t.disk, err)
	}
	t.mu.Lock()
	t.answer = message{}
	t.mu.Unlock()
	return unpackRegions(answer)
}

// answered takes over an answer, if it is to the last question. The tap's lock is held.
func (t *Tap) answered(m message) {
	if m.Gen != t.question || t.closed {
		m.close()
		return
	}
	t.answer.close()
	t.answer = m
}
