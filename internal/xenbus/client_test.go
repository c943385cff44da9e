package xenbus_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/xenbus"
	"vmscope/internal/xenbus/xenbustest"
)

func newClient(t testing.TB) (*xenbus.Client, *xenbustest.Store) {
	t.Helper()
	s := xenbustest.New()
	conn, err := s.Dial()
	if err != nil {
		t.Fatal(err)
	}
	c := xenbus.New(conn)
	t.Cleanup(func() { c.Close() })
	return c, s
}

func TestValues(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	if err := c.Write(ctx, "/a/b/c", "one\x00two"); err != nil {
		t.Fatal(err)
	}
	if v, err := c.Read(ctx, "/a/b/c"); v != "one\x00two" || err != nil {
		t.Errorf("read %q, %v", v, err)
	}
	if v, ok := s.Value("/a/b/c"); v != "one\x00two" || !ok {
		t.Errorf("the store has %q, %v", v, ok)
	}
	if v, err := c.Read(ctx, "/a"); v != "" || err != nil {
		t.Errorf("what was made beside has %q, %v", v, err)
	}
	s.Set("/a/d", "")
	if l, err := c.List(ctx, "/a"); !slices.Equal(l, []string{"b", "d"}) || err != nil {
		t.Errorf("list: %q, %v", l, err)
	}
	if l, err := c.List(ctx, "/a/d"); len(l) != 0 || err != nil {
		t.Errorf("list of a leaf: %q, %v", l, err)
	}
	if v, err := c.Read(ctx, "domid"); v != "0" || err != nil {
		t.Errorf("own domain: %q, %v", v, err)
	}
	if err := c.Remove(ctx, "/a/b"); err != nil {
		t.Error(err)
	}
	_, err := c.Read(ctx, "/a/b/c")
	var refused *xenbus.Error
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &refused) || refused.Path != "/a/b/c" || refused.Op != "read" {
		t.Errorf("what was removed: %v", err)
	}
	if err := c.Remove(ctx, "/a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestLongList(t *testing.T) {
	c, s := newClient(t)
	var want []string
	for i := range 3000 {
		name := fmt.Sprintf("%05d", i)
		want = append(want, name)
		s.Set("/long/"+name, "")
	}
	if got, err := c.List(t.Context(), "/long"); !slices.Equal(got, want) || err != nil {
		t.Errorf("%d names, %v", len(got), err)
	}
}

// What is no path never reaches the store, where it could be taken for two.
func TestBadPaths(t *testing.T) {
	c, _ := newClient(t)
	for _, p := range []string{"", "/a\x00b", "/a b", "/ä", strings.Repeat("/a", 1600)} {
		if err := c.Write(t.Context(), p, "x"); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("path %.10q: %v", p, err)
		}
	}
	if err := c.Write(t.Context(), "/a", strings.Repeat("x", 4096)); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("a long value: %v", err)
	}
}

func TestWatch(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	w, err := c.Watch(ctx, "/w")
	if err != nil {
		t.Fatal(err)
	}
	next := func(want string) {
		t.Helper()
		if p, err := w.Next(ctx); p != want || err != nil {
			t.Errorf("next: %q, %v, want %q", p, err, want)
		}
	}
	next("/w")
	s.Set("/w/x", "1")
	next("/w/x")
	s.Set("/other", "1")
	if err := c.Write(ctx, "/w", ""); err != nil {
		t.Fatal(err)
	}
	next("/w")
	rel, err := c.Watch(ctx, "backend/vbd")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"backend/vbd", "backend/vbd/7/51712/state"} {
		if p, err := rel.Next(ctx); p != want || err != nil {
			t.Errorf("next: %q, %v, want %q", p, err, want)
		}
		s.Set("/local/domain/0/backend/vbd/7/51712/state", "1")
	}
	if err := rel.Close(); err != nil {
		t.Error(err)
	}
	soon, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := w.Next(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing changed: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	s.HangUp()
	if _, err := w.Next(ctx); err == nil || ctx.Err() != nil {
		t.Error("the connection ended, the watch did not")
	}
}

// A guest that writes as much as it likes costs a bounded number of changes, and none of them is missed for good.
func TestWatchOverflow(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	w, err := c.Watch(ctx, "/w")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := w.Next(ctx); p != "/w" || err != nil {
		t.Fatal(p, err)
	}
	for i := range 5000 {
		s.Set(fmt.Sprintf("/w/%d", i), "")
	}
	// Behind the answer to a request all events that came before it were seen.
	if _, err := c.Read(ctx, "/w/4999"); err != nil {
		t.Fatal(err)
	}
	n, all := 0, false
	for {
		soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		p, err := w.Next(soon)
		cancel()
		if err != nil {
			break
		}
		n++
		all = all || p == "/w"
	}
	if n == 0 || n > 1024 || !all {
		t.Errorf("%d changes, the root among them: %v", n, all)
	}
}

func TestTransaction(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	s.Set("/n", "0")
	// Others get in the way of the first tries.
	tries := 0
	err := c.Transaction(ctx, func(tx *xenbus.Tx) error {
		v, err := tx.Read(ctx, "/n")
		if err != nil {
			return err
		}
		if tries++; tries < 4 {
			s.Set("/n", fmt.Sprint(tries*10))
		}
		return tx.Write(ctx, "/n", v+"+")
	})
	if v, _ := s.Value("/n"); v != "30+" || err != nil || tries != 4 {
		t.Errorf("%q after %d tries, %v", v, tries, err)
	}
	no := errors.New("no")
	err = c.Transaction(ctx, func(tx *xenbus.Tx) error {
		if err := tx.Write(ctx, "/n", "x"); err != nil {
			return err
		}
		if l, err := tx.List(ctx, "/"); !slices.Contains(l, "n") || err != nil {
			t.Error(l, err)
		}
		return errors.Join(no, tx.Remove(ctx, "/n"))
	})
	if v, _ := s.Value("/n"); v != "30+" || !errors.Is(err, no) {
		t.Errorf("given up: %q, %v", v, err)
	}
	err = c.Transaction(ctx, func(*xenbus.Tx) error {
		s.Set("/n", "again")
		return nil
	})
	if !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("in the way for ever: %v", err)
	}
	// Transactions of many goroutines add up.
	s.Set("/sum", "")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			err := c.Transaction(ctx, func(tx *xenbus.Tx) error {
				v, err := tx.Read(ctx, "/sum")
				return errors.Join(err, tx.Write(ctx, "/sum", v+"x"))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if v, _ := s.Value("/sum"); len(v) != 20 {
		t.Errorf("%d of 20 added up", len(v))
	}
}

func TestConcurrent(t *testing.T) {
	c, _ := newClient(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				p, v := fmt.Sprintf("/g/%d", g), fmt.Sprint(i)
				if err := c.Write(t.Context(), p, v); err != nil {
					t.Error(err)
				}
				if got, err := c.Read(t.Context(), p); got != v || err != nil {
					t.Errorf("%q, %v, want %q", got, err, v)
				}
			}
		})
	}
	wg.Wait()
}

// silent is a store that never answers.
func silent(t *testing.T) (*xenbus.Client, net.Conn) {
	a, b := net.Pipe()
	c := xenbus.New(a)
	t.Cleanup(func() { c.Close(); b.Close() })
	return c, b
}

func TestCancelled(t *testing.T) {
	c, b := silent(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		b.Read(make([]byte, 100))
		cancel()
	}()
	if _, err := c.Read(ctx, "/a"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// Its answer comes late: the next question does not get it.
	go func() {
		m := make([]byte, 100)
		n, _ := b.Read(m)
		late := append(binary.LittleEndian.AppendUint32(nil, 2), 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 'L')
		b.Write(late)
		b.Write(append(append(m[:12:12], 1, 0, 0, 0), 'R'))
		_ = n
	}()
	if v, err := c.Read(t.Context(), "/a"); v != "R" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	go func() {
		b.Read(make([]byte, 100))
		c.Close()
	}()
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed while it waits: %v", err)
	}
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// FuzzReplies lets the store say anything: a client gives an error, and never waits for more than was said.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00v"))
	f.Add([]byte("\x10\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00ENOENT\x00"))
	f.Add([]byte("\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00/w\x00w1\x00"))
	f.Add([]byte("\x14\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x001\x00a\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, said []byte) {
		a, b := net.Pipe()
		c := xenbus.New(a)
		go func() {
			b.Read(make([]byte, 4096))
			b.Write(said)
			b.Close()
		}()
		ctx := t.Context()
		w, err := c.Watch(ctx, "/w")
		if err == nil {
			w.Next(ctx)
		}
		c.List(ctx, "/a")
		c.Transaction(ctx, func(tx *xenbus.Tx) error { _, err := tx.Read(ctx, "/a"); return err })
		c.Close()
		if _, err := c.Read(ctx, "/a"); err == nil {
			t.Error("a closed client reads")
		}
	})
}
