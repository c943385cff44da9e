// Package xenbustest is a xenstore in memory, for tests: it answers on one end of a socket pair as the kernel's device does.
//
// It is written from the protocol's description, apart from package xenbus, so that each is a check of the other.
package xenbustest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Store is a xenstore. It is safe for concurrent use.
type Store struct {
	home string // of relative paths

	mu    sync.Mutex
	nodes map[string]string // a node's value by its path
	gen   uint64            // rises with each change
	conns map[*conn]bool
}

type conn struct {
	s    *Store
	file net.Conn
	out  sync.Mutex

	watches []watch           // guarded by the store's lock
	open    map[uint32]*draft // transactions, by id
	nextTx  uint32
}

type watch struct{ path, token string }

// draft is a transaction: the tree as it was, with what was done in it.
type draft struct {
	nodes   map[string]string
	gen     uint64
	changed []string
}

// New makes a store as domain 0 sees it: /local/domain/0 is there.
func New() *Store {
	s := &Store{home: "/local/domain/0", nodes: map[string]string{"/": ""}, conns: map[*conn]bool{}}
	s.Set(s.home+"/domid", "0")
	return s
}

// Dial connects to the store.
func (s *Store) Dial() (io.ReadWriteCloser, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range p {
		f := os.NewFile(uintptr(fd), "xenstore")
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
		f.Close()
	}
	c := &conn{s: s, file: ends[1], open: map[uint32]*draft{}}
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	go c.serve()
	return ends[0], nil
}

// Set writes as somebody else would.
func (s *Store) Set(path, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	put(s.nodes, path, value)
	s.changed(path)
}

// Value is what is at path.
func (s *Store) Value(path string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.nodes[path]
	return v, ok
}

// Drop removes path and all below it.
func (s *Store) Drop(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	drop(s.nodes, path)
	s.changed(path)
}

// Announce fires the watches of a special path, as @releaseDomain.
func (s *Store) Announce(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed(name)
}

// HangUp ends all connections.
func (s *Store) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.file.Close()
	}
}

func put(nodes map[string]string, path, value string) {
	nodes[path] = value
	for p := path; ; {
		i := strings.LastIndexByte(p, '/')
		if i <= 0 {
			return
		}
		p = p[:i]
		if _, ok := nodes[p]; !ok {
			nodes[p] = ""
		}
	}
}

func drop(nodes map[string]string, path string) {
	maps.DeleteFunc(nodes, func(p, _ string) bool { return p == path || strings.HasPrefix(p, path+"/") })
}

// changed tells all who watch. The lock is held.
func (s *Store) changed(path string) {
	s.gen++
	for c := range s.conns {
		for _, w := range c.watches {
			abs := c.abs(w.path)
			if path == abs || strings.HasPrefix(path, strings.TrimSuffix(abs, "/")+"/") || strings.HasPrefix(abs, path+"/") {
				c.event(w, path)
			}
		}
	}
}

// event tells of a change below or above what is watched, in the form in which it is watched.
func (c *conn) event(w watch, path string) {
	if abs := c.abs(w.path); !strings.HasPrefix(path, abs) {
		path = w.path // what is above it was removed
	} else {
		path = w.path + path[len(abs):]
	}
	c.send(15, 0, 0, []byte(path+"\x00"+w.token+"\x00"))
}

func (c *conn) abs(path string) string {
	if path == "" || path[0] == '/' || path[0] == '@' {
		return path
	}
	return c.s.home + "/" + path
}

func (c *conn) send(op, id, tx uint32, body []byte) {
	var b []byte
	for _, v := range []uint32{op, id, tx, uint32(len(body))} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	c.out.Lock()
	defer c.out.Unlock()
	c.file.Write(append(b, body...))
}

func (c *conn) serve() {
	defer func() {
		c.file.Close()
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		delete(c.s.conns, c)
	}()
	for {
		var h [16]byte
		if _, err := io.ReadFull(c.file, h[:]); err != nil {
			return
		}
		le := binary.LittleEndian
		n := le.Uint32(h[12:])
		if n > 4080 {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c.file, body); err != nil {
			return
		}
		c.answer(le.Uint32(h[:]), le.Uint32(h[4:]), le.Uint32(h[8:]), body)
	}
}

func (c *conn) answer(op, id, tx uint32, body []byte) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	reply, err := c.do(op, tx, body)
	if err != "" {
		op, reply = 16, []byte(err+"\x00")
	}
	c.send(op, id, tx, reply)
	if op == 4 { // the first event of a watch comes at once
		w := c.watches[len(c.watches)-1]
		c.send(15, 0, 0, []byte(w.path+"\x00"+w.token+"\x00"))
	}
}

// do does one request. The store's lock is held.
func (c *conn) do(op, tx uint32, body []byte) (reply []byte, errno string) {
	nodes := c.s.nodes
	t := c.open[tx]
	if tx != 0 && t == nil {
		return nil, "ENOENT"
	}
	if t != nil {
		nodes = t.nodes
	}
	head, rest, _ := bytes.Cut(body, []byte{0})
	path := c.abs(string(head))
	value, there := nodes[path]
	ok := []byte("OK\x00")
	change := func() {
		if t != nil {
			t.changed = append(t.changed, path)
		} else {
			c.s.changed(path)
		}
	}
	switch op {
	case 1, 20: // directory
		if !there {
			return nil, "ENOENT"
		}
		return c.list(nodes, op, path, rest)
	case 2: // read
		if !there {
			return nil, "ENOENT"
		}
		return []byte(value), ""
	case 4:
		c.watches = append(c.watches, watch{string(head), string(bytes.TrimRight(rest, "\x00"))})
		return ok, ""
	case 5:
		w := watch{string(head), string(bytes.TrimRight(rest, "\x00"))}
		i := slices.Index(c.watches, w)
		if i < 0 {
			return nil, "ENOENT"
		}
		c.watches = slices.Delete(c.watches, i, i+1)
		return ok, ""
	case 6:
		c.nextTx++
		c.open[c.nextTx] = &draft{nodes: maps.Clone(c.s.nodes), gen: c.s.gen}
		return []byte(strconv.FormatUint(uint64(c.nextTx), 10) + "\x00"), ""
	case 7:
		delete(c.open, tx)
		if t == nil {
			return nil, "EINVAL"
		}
		if string(head) != "T" {
			return ok, ""
		}
		if t.gen != c.s.gen {
			return nil, "EAGAIN"
		}
		c.s.nodes = t.nodes
		for _, p := range t.changed {
			c.s.changed(p)
		}
		return ok, ""
	case 11:
		put(nodes, path, string(rest))
		change()
		return ok, ""
	case 13:
		if !there {
			return nil, "ENOENT"
		}
		drop(nodes, path)
		change()
		return ok, ""
	}
	return nil, "ENOSYS"
}

// list is all children of path, or a part of them.
func (c *conn) list(nodes map[string]string, op uint32, path string, rest []byte) ([]byte, string) {
	var all []byte
	for _, p := range slices.Sorted(maps.Keys(nodes)) {
		if name, ok := strings.CutPrefix(p, strings.TrimSuffix(path, "/")+"/"); ok && name != "" && !strings.Contains(name, "/") {
			all = append(append(all, name...), 0)
		}
	}
	if op == 1 {
		if len(all) > 4096 {
			return nil, "E2BIG"
		}
		return all, ""
	}
	at, err := strconv.Atoi(string(bytes.TrimRight(rest, "\x00")))
	if err != nil || at < 0 || at > len(all) {
		return nil, "EINVAL"
	}
	out := fmt.Appendf(nil, "%d\x00", c.s.gen)
	for at < len(all) {
		end := at + bytes.IndexByte(all[at:], 0) + 1
		if len(out)+end-at > 4000 {
			return out, ""
		}
		out, at = append(out, all[at:end]...), end
	}
	return append(out, 0), ""
}
