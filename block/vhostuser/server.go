package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"vmscope/block"
	"vmscope/internal/hot"
)

// Options are how a disk is served. The zero value of each field is a good default.
type Options struct {
	Observer block.Observer // sees the writes
	ReadOnly bool
	Serial   string // what the guest reads as the disk's ID, at most 20 bytes
	// Queues bounds the virtqueues that a front end may use; default 16.
	Queues int
	// BlockSize is the logical block size in bytes; default 512.
	BlockSize int
	// SegMax bounds the pieces of a request; default 126, which fits QEMU's default queue of 128.
	SegMax int
	// StopTimeout is how long a queue's stop waits for what is under way; default 500 ms. The front end, and so perhaps the
	// guest, stands still meanwhile.
	StopTimeout time.Duration
	// Dedicated tells that this process does little but serve. Requests then cost less, those that come alone a fraction;
	// but other goroutines may have to wait some milliseconds for their turn, or for a slow disk.
	Dedicated bool
	// MemoryChanged is called, if set, when the front end has told of another memory table; see Server.Memory.
	MemoryChanged func()
	// Report gets what went wrong and could be told to nobody else: *RequestError, *RingError, and breaches of the protocol.
	// It may be called by several goroutines, and must not wait.
	Report func(error)
}

// RequestError says that the disk failed in a request. The guest was told.
type RequestError struct {
	Op    string // read, write, flush, discard
	Off   int64  // bytes
	Queue int
	Err   error
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("vhost-user: %s at %d, queue %d: %v", e.Op, e.Off, e.Queue, e.Err)
}

// Unwrap gives the disk's error.
func (e *RequestError) Unwrap() error { return e.Err }

// RingError says that a queue was given up: the guest made nonsense of it, or its memory is gone.
type RingError struct {
	Queue int
	Err   error
}

func (e *RingError) Error() string {
	return fmt.Sprintf("vhost-user: queue %d was given up: %v", e.Queue, e.Err)
}

// Unwrap gives the reason.
func (e *RingError) Unwrap() error { return e.Err }

// Server serves one disk, to one front end at a time.
type Server struct {
	disk     block.Disk
	now      block.NowReader
	size     int64
	opts     Options
	features uint64
	config   []byte
	bounce   sync.Pool
	tokens   chan struct{} // bounds what goes on beside the queues

	order     sync.Mutex // of what the observer sees; guards published
	published block.Write

	mu      sync.Mutex
	session *session
	runs    map[*run]bool
}

// maxBeside bounds the requests that go on beside the queues: each has a thread.
const maxBeside = 64

// New serves a disk. Bytes behind the last whole block are not there for the guest.
func New(disk block.Disk, o Options) (*Server, error) {
	if o.Queues == 0 {
		o.Queues = 16
	}
	if o.BlockSize == 0 {
		o.BlockSize = 512
	}
	if o.SegMax == 0 {
		o.SegMax = 126
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 500 * time.Millisecond
	}
	if o.Dedicated {
		hot.Dedicate()
	}
	switch {
	case o.Queues < 1 || o.Queues > maxQueues:
		return nil, fmt.Errorf("vhost-user: %d queues, want 1 to %d", o.Queues, maxQueues)
	case o.BlockSize < 512 || o.BlockSize > 65536 || o.BlockSize&(o.BlockSize-1) != 0:
		return nil, fmt.Errorf("vhost-user: block size %d is no power of two from 512 to 65536", o.BlockSize)
	case o.SegMax < 1 || o.SegMax > maxChain-2:
		return nil, fmt.Errorf("vhost-user: %d pieces, want 1 to %d", o.SegMax, maxChain-2)
	case len(o.Serial) > idLength:
		return nil, fmt.Errorf("vhost-user: serial %q has more than %d bytes", o.Serial, idLength)
	}
	s := &Server{
		disk: disk, opts: o, size: disk.Size() / int64(o.BlockSize) * int64(o.BlockSize),
		tokens: make(chan struct{}, maxBeside), runs: map[*run]bool{},
		features: featSegMax | featBlockSize | featFlush | featQueues | featIndirect | featEventIdx | featProtocol | featVersion1,
	}
	s.bounce.New = func() any { return new([pieceSize]byte) }
	s.now, _ = disk.(block.NowReader)
	if o.ReadOnly {
		s.features |= featReadOnly
	} else {
		if _, ok := disk.(block.Discarder); ok {
			s.features |= featDiscard
		}
		if _, ok := disk.(block.Zeroer); ok {
			s.features |= featWriteZeroes
		}
	}
	s.config = s.newConfig()
	return s, nil
}

// newConfig is struct virtio_blk_config (virtio 1.2, 5.2.4).
func (s *Server) newConfig() []byte {
	b := make([]byte, 60)
	le := binary.LittleEndian
	le.PutUint64(b, uint64(s.size/sector))
	le.PutUint32(b[12:], uint32(s.opts.SegMax))
	le.PutUint32(b[20:], uint32(s.opts.BlockSize))
	le.PutUint16(b[34:], uint16(s.opts.Queues))
	// Discards and zeroes of up to 1 GiB, in units of 4 KiB, which is what file systems can free.
	le.PutUint32(b[36:], 1<<21)
	le.PutUint32(b[40:], maxSegments)
	le.PutUint32(b[44:], uint32(max(4096, s.opts.BlockSize)/sector))
	le.PutUint32(b[48:], 1<<21)
	le.PutUint32(b[52:], 1)
	b[56] = 1 // write-zeroes may free
	return b
}

// Serve accepts front ends, one after the other, until ctx ends or the listener fails. It closes ln. When ctx ends, what
// is under way is completed first (see Options.StopTimeout); a front end that connects again later finds nothing lost.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	defer ln.Close()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("vhost-user: %w", err)
		}
		if err := s.ServeConn(ctx, c); err != nil && ctx.Err() == nil {
			s.report(err)
		}
	}
}

// Connect serves a front end that listens at a Unix socket (QEMU's -chardev socket,server=on), and connects again
// whenever it was cut off, until ctx ends. A back end that is started anew is so in the path within milliseconds, where
// QEMU's own reconnect=1 takes a second.
func (s *Server) Connect(ctx context.Context, path string) error {
	for ctx.Err() == nil {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			err = s.ServeConn(ctx, c.(*net.UnixConn))
			if ctx.Err() == nil {
				s.report(err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(connectEvery):
		}
	}
	return context.Cause(ctx)
}

const connectEvery = 2 * time.Millisecond

// ServeConn serves one front end until it goes, which is no error, or ctx ends. It closes c. Only one may be served at a
// time.
func (s *Server) ServeConn(ctx context.Context, c *net.UnixConn) error {
	defer c.Close()
	x := &session{srv: s}
	x.w.c = c
	for i := range s.opts.Queues {
		x.queues = append(x.queues, &queue{s: x, index: i, call: -1, err: -1})
	}
	s.mu.Lock()
	busy := s.session != nil
	if !busy {
		s.session = x
	}
	s.mu.Unlock()
	if busy {
		return errors.New("vhost-user: another front end is being served")
	}
	// The reader is waked by a deadline, so that the queues end in order before the front end sees us go.
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := x.serve()
	until := time.Now()
	if ctx.Err() != nil {
		until, err = until.Add(s.opts.StopTimeout), context.Cause(ctx)
	}
	x.end(until)
	s.mu.Lock()
	s.session = nil
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("vhost-user: %w", err)
	}
	return nil
}

func (s *Server) report(err error) {
	if s.opts.Report != nil && err != nil {
		s.opts.Report(err)
	}
}

// enter takes a place beside the queues; false if all are taken.
func (s *Server) enter() bool {
	select {
	case s.tokens <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) leave() { <-s.tokens }

func (s *Server) began(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[r] = true
}

func (s *Server) finished(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runs, r)
}

// unfinished are the runs that were stopped and have requests under way.
func (s *Server) unfinished() []*run {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*run
	for r := range s.runs {
		if r.halt.Load() {
			list = append(list, r)
		}
	}
	return slices.Clip(list)
}
