// Package xenbus speaks with xenstore, the tree of small values in which a Xen host says what domains there are and how
// their devices meet.
//
// The way there is the kernel's device /dev/xen/xenbus: no library and no daemon's socket is needed, and it is the same in
// a domain that is not the first. Paths that begin with no slash are those of our own domain.
//
// What domains write into the store is theirs: values are not to be trusted.
//
// Sources: xen/docs/misc/xenstore.txt, xen/include/public/io/xs_wire.h; Linux drivers/xen/xenbus/xenbus_dev_frontend.c.
package xenbus

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Client is a connection to the store. It is safe for concurrent use.
type Client struct {
	conn io.ReadWriteCloser
	done chan struct{} // closed when nothing more will be read

	write sync.Mutex // of whole messages
	begin chan struct{}

	mu      sync.Mutex
	next    uint32
	waiting map[uint32]chan<- message
	watches map[string]*Watch // by token
	err     error             // why it ended
}

// devices are where the kernel has the store; the second is that of a kernel before 3.x, and of xenfs.
var devices = []string{"/dev/xen/xenbus", "/proc/xen/xenbus"}

// Open connects to the store of this host. Where there is none, the error is fs.ErrNotExist.
func Open() (*Client, error) {
	var first error
	for _, name := range devices {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err == nil {
			return New(f), nil
		}
		if first == nil || errors.Is(first, fs.ErrNotExist) && !errors.Is(err, fs.ErrNotExist) {
			first = err
		}
	}
	return nil, first
}

// New makes a client of a connection, which it takes over. To close the connection has to end a read that waits.
func New(conn io.ReadWriteCloser) *Client {
	c := &Client{
		conn: conn, done: make(chan struct{}), begin: make(chan struct{}, 1),
		waiting: map[uint32]chan<- message{}, watches: map[string]*Watch{},
	}
	go c.receive()
	return c
}

// Close ends the connection, with all watches and transactions.
func (c *Client) Close() error {
	c.fail(os.ErrClosed)
	err := c.conn.Close()
	<-c.done
	return err
}

// fail remembers why the connection ended. The first reason counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

func (c *Client) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// receive hands out what comes, until the connection ends.
func (c *Client) receive() {
	r := bufio.NewReaderSize(c.conn, headerLen+maxPayload)
	for {
		m, err := readMessage(r)
		if err == nil {
			err = c.handOut(m)
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		c.fail(err)
		close(c.done)
		return
	}
}

func (c *Client) handOut(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.op != opEvent {
		ch := c.waiting[m.id] // nil: nobody waits any more
		if ch == nil {
			return nil
		}
		delete(c.waiting, m.id)
		ch <- m // has room
		return nil
	}
	parts := bytes.Split(m.body, []byte{0})
	if len(parts) < 3 {
		return fmt.Errorf("%w: an event of %d bytes", ErrProtocol, len(m.body))
	}
	if w := c.watches[string(parts[1])]; w != nil {
		w.fire(string(parts[0]))
	}
	return nil
}

// call asks and waits for the answer.
func (c *Client) call(ctx context.Context, op, tx uint32, path string, body []byte) ([]byte, error) {
	wrap := func(err error) error { return &Error{opNames[op], path, err} }
	if len(body) > maxRequest {
		return nil, wrap(syscall.E2BIG)
	}
	if err := ctx.Err(); err != nil {
		return nil, wrap(err)
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, wrap(c.err)
	}
	for {
		c.next++
		if _, taken := c.waiting[c.next]; !taken {
			break
		}
	}
	id := c.next
	c.waiting[id] = answer
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}
	m := message{op, id, tx, body}
	c.write.Lock()
	_, err := c.conn.Write(m.append(nil))
	c.write.Unlock()
	if err != nil {
		forget()
		return nil, wrap(err)
	}
	select {
	case m = <-answer:
	case <-c.done:
		select {
		case m = <-answer: // came just before the end
		default:
			return nil, wrap(c.failure())
		}
	case <-ctx.Done():
		forget()
		return nil, wrap(context.Cause(ctx))
	}
	switch m.op {
	case op:
		return m.body, nil
	case opError:
		return nil, wrap(refusal(m.body))
	}
	return nil, wrap(fmt.Errorf("%w: kind %d answers %d", ErrProtocol, m.op, op))
}

// on does an operation on one path, in a transaction or outside of one (0).
func (c *Client) on(ctx context.Context, op, tx uint32, path string, value []byte) ([]byte, error) {
	if err := checkPath(path); err != nil {
		return nil, &Error{opNames[op], path, err}
	}
	body := append(append([]byte(path), 0), value...)
	return c.call(ctx, op, tx, path, body)
}

func (c *Client) read(ctx context.Context, tx uint32, path string) (string, error) {
	b, err := c.on(ctx, opRead, tx, path, nil)
	return string(b), err
}

// list lists the names below path. A list that does not fit into one message comes in parts, which is made anew if it
// changes meanwhile.
func (c *Client) list(ctx context.Context, tx uint32, path string) ([]string, error) {
	b, err := c.on(ctx, opList, tx, path, nil)
	if err == nil {
		return names(b), nil
	}
	if !errors.Is(err, syscall.E2BIG) {
		return nil, err
	}
	var generation string
	var all []byte
	for range maxReplyParts {
		b, err := c.on(ctx, opListPart, tx, path, append(strconv.AppendInt(nil, int64(len(all)), 10), 0))
		if err != nil {
			return nil, err
		}
		head, part, ok := bytes.Cut(b, []byte{0})
		if !ok {
			return nil, &Error{"list", path, ErrProtocol}
		}
		if len(all) > 0 && string(head) != generation {
			all = nil
			continue
		}
		generation = string(head)
		// The last part ends with an empty name.
		if len(part) == 1 || bytes.HasSuffix(part, []byte{0, 0}) {
			return names(append(all, part...)), nil
		}
		if len(part) == 0 {
			break
		}
		all = append(all, part...)
	}
	return nil, &Error{"list", path, ErrProtocol}
}

func names(b []byte) []string {
	var out []string
	for s := range strings.SplitSeq(string(b), "\x00") {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Read gives the value at path.
func (c *Client) Read(ctx context.Context, path string) (string, error) { return c.read(ctx, 0, path) }

// List gives the names below path, one level deep.
func (c *Client) List(ctx context.Context, path string) ([]string, error) {
	return c.list(ctx, 0, path)
}

// Write sets the value at path, and makes what of the path is missing.
func (c *Client) Write(ctx context.Context, path, value string) error {
	_, err := c.on(ctx, opWrite, 0, path, []byte(value))
	return err
}

// Remove removes path and all below it. That it is not there is an error, fs.ErrNotExist.
func (c *Client) Remove(ctx context.Context, path string) error {
	_, err := c.on(ctx, opRemove, 0, path, nil)
	return err
}
