package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Client is a connection to an export, and the disk that it is. Any number of goroutines may use it at once; their
// requests are in flight together. Once the connection fails it stays failed.
type Client struct {
	conn    net.Conn
	info    Info
	metaID  uint32
	timeout time.Duration

	sending sync.Mutex // of conn's writing side
	head    []byte     // of the request that is sent

	mu     sync.Mutex
	calls  map[uint64]*call
	cookie uint64
	err    error         // why the connection is over
	ended  chan struct{} // closed when the receiver has ended
}

// call is one request in flight.
type call struct {
	q    request
	buf  []byte   // what a read goes to
	got  spans    // which parts of buf are there
	exts []Extent // what block status was answered
	max  int      // extents that are wanted
	err  error
	done chan struct{}

	errors    int  // error chunks that came
	receiving bool // the receiver is at work on it: buf is in use
}

// Error says that a server refused a request.
type Error struct {
	Op      string // as "write zeroes"
	Off     int64
	Len     int64
	Errno   syscall.Errno // as the protocol has it
	Message string        // of the server, not to be trusted
}

func (e *Error) Error() string {
	s := fmt.Sprintf("nbd: %s of %d bytes at %d: %v", e.Op, e.Len, e.Off, e.Errno)
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

// Unwrap gives the number.
func (e *Error) Unwrap() error { return e.Errno }

func startClient(h *hail, o Options) *Client {
	c := &Client{conn: h.conn, info: h.info, metaID: h.metaID, timeout: o.Timeout,
		calls: map[uint64]*call{}, ended: make(chan struct{})}
	go c.receive()
	return c
}

// Info is what the server said of the export.
func (c *Client) Info() Info { return c.info }

// Size is that of the export.
func (c *Client) Size() int64 { return c.info.Size }

// ReadOnly tells that the server takes no writes.
func (c *Client) ReadOnly() bool { return c.info.ReadOnly }

// MultiConn tells whether a flush on one connection covers writes on others.
func (c *Client) MultiConn() bool { return c.info.MultiConn }

// Close takes leave and closes the connection. Requests in flight fail.
func (c *Client) Close() error {
	c.mu.Lock()
	over := c.err != nil
	c.mu.Unlock()
	if !over {
		// Not if a stalled send holds the connection: then it is just broken off.
		if c.sending.TryLock() {
			c.conn.SetWriteDeadline(time.Now().Add(time.Second))
			c.conn.Write(appendRequest(nil, request{typ: cmdDisc}))
			c.sending.Unlock()
		}
	}
	c.fail(ErrShutdown)
	<-c.ended
	return nil
}

// fail ends the connection, for all.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.conn.SetDeadline(longAgo) // wakes the receiver, who closes
	}
}

// do sends a request and waits for its reply.
func (c *Client) do(ctx context.Context, k *call, payload []byte) error {
	k.done = make(chan struct{})
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, os.ErrDeadlineExceeded)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return c.at(k, context.Cause(ctx))
	}
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return c.at(k, err)
	}
	c.cookie++
	k.q.cookie = c.cookie
	c.calls[k.q.cookie] = k
	c.mu.Unlock()
	if err := c.send(ctx, k, payload); err != nil {
		c.fail(err)
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if c.abandon(k) {
			return c.at(k, context.Cause(ctx))
		}
	}
	if k.err != nil {
		return c.at(k, k.err)
	}
	return nil
}

// at says which request an error is about.
func (c *Client) at(k *call, err error) error {
	if errors.As(err, new(*Error)) {
		return err
	}
	return fmt.Errorf("nbd: %s of %d bytes at %d: %w", cmdName(k.q.typ), k.q.len, k.q.off, err)
}

// send sends a request. An error has ended the connection.
func (c *Client) send(ctx context.Context, k *call, payload []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if ctx.Done() != nil {
		// A server that takes nothing any more leaves a request half sent: then the connection is of no use.
		sent := make(chan struct{})
		defer close(sent)
		defer context.AfterFunc(ctx, func() {
			select {
			case <-sent:
			case <-time.After(time.Second):
				c.fail(context.Cause(ctx))
			}
		})()
	}
	c.head = appendRequest(c.head[:0], k.q)
	if len(payload) <= 16<<10 {
		c.head = append(c.head, payload...)
		_, err := c.conn.Write(c.head)
		return err
	}
	_, err := (&net.Buffers{c.head, payload}).WriteTo(c.conn)
	return err
}

// abandon gives a call up: its reply will be dropped. Where the receiver is filling its buffer, that is waited for, but
// not for long. It is false if the call was done before.
func (c *Client) abandon(k *call) bool {
	c.mu.Lock()
	if c.calls[k.q.cookie] != k {
		c.mu.Unlock()
		<-k.done
		return false
	}
	if !k.receiving {
		ghost := *k // takes the rest of the reply
		ghost.buf, ghost.done = nil, make(chan struct{})
		c.calls[k.q.cookie] = &ghost
		c.mu.Unlock()
		return true
	}
	c.mu.Unlock()
	select {
	case <-k.done:
	case <-time.After(time.Second):
		c.fail(errors.New("stalled amid a reply"))
		<-k.done
	}
	return false
}

// claim finds the call that a reply is for, and keeps its buffer from going away.
func (c *Client) claim(cookie uint64) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[cookie]
	if k != nil {
		k.receiving = true
	}
	return k
}

// release ends the work on a piece of a reply.
func (c *Client) release(k *call, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.receiving = false
	if done {
		delete(c.calls, k.q.cookie)
		close(k.done)
	}
}

// receive takes replies until the connection ends.
func (c *Client) receive() {
	in := newReader(&connStream{c.conn}, 64<<10)
	in.ahead = aheadLarge
	var err error
	for err == nil {
		err = c.reply(in)
	}
	if err == io.EOF {
		err = fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	c.fail(err)
	c.conn.Close()
	c.mu.Lock()
	for cookie, k := range c.calls {
		k.err = c.err
		delete(c.calls, cookie)
		close(k.done)
	}
	c.mu.Unlock()
	close(c.ended)
}
