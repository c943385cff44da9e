package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script is a connection whose other side says what was written down before, and hears nothing.
type script struct {
	net.Conn
	in  []byte
	out bytes.Buffer
}

func (s *script) Read(b []byte) (int, error) {
	n := copy(b, s.in)
	if s.in = s.in[n:]; n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (s *script) Write(b []byte) (int, error)    { return s.out.Write(b) }
func (*script) Close() error                     { return nil }
func (*script) SetDeadline(time.Time) error      { return nil }
func (*script) SetReadDeadline(time.Time) error  { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }
func (*script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *script) option(opt uint32, data ...byte) {
	s.in = append(optionBytes(s.in, opt, len(data)), data...)
}
func (s *script) request(q request, payload ...byte) {
	s.in = append(appendRequest(s.in, q), payload...)
}

func optionBytes(b []byte, opt uint32, n int) []byte {
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, opt)
	return be.AppendUint32(b, uint32(n))
}

func newScript(flags uint32) *script { return &script{in: be.AppendUint32(nil, flags)} }

// lengthAnd is a string with its length before it.
func lengthAnd(s string) []byte { return append(be.AppendUint32(nil, uint32(len(s))), s...) }

func TestHandshakeRefusals(t *testing.T) {
	s := func() *Server { return &Server{Exports: []Export{{Name: "a", Device: newMem(1000)}}} }
	metaQuery := func(lists ...string) []byte {
		b := append(lengthAnd("a"), 0, 0, 0, byte(len(lists)))
		for _, q := range lists {
			b = append(b, lengthAnd(q)...)
		}
		return b
	}
	for name, tt := range map[string]struct {
		opt        uint32
		data       []byte
		structured bool
		want       uint32
	}{
		"list with data":            {optList, []byte{1}, false, repErrInvalid},
		"unknown":                   {77, []byte("abc"), false, repErrUnsup},
		"option 0":                  {0, nil, false, repErrUnsup},
		"structured with data":      {optStructuredReply, []byte{1}, false, repErrInvalid},
		"TLS":                       {optStartTLS, nil, false, repErrPolicy},
		"TLS with data":             {optStartTLS, []byte{1}, false, repErrInvalid},
		"info of nothing":           {optInfo, append(lengthAnd("b"), 0, 0), false, repErrUnknown},
		"go to nothing":             {optGo, append(lengthAnd("b"), 0, 0), false, repErrUnknown},
		"go, short":                 {optGo, []byte{0, 0, 0}, false, repErrInvalid},
		"go, name beyond":           {optGo, []byte{0, 0, 0, 9, 'a', 0, 0}, false, repErrInvalid},
		"go, huge name":             {optGo, []byte{255, 255, 255, 255, 'a', 0, 0}, false, repErrInvalid},
		"go, requests beyond":       {optGo, append(lengthAnd("a"), 0, 2, 0, 3), false, repErrInvalid},
		"too big":                   {optList, make([]byte, maxOption+1), false, repErrTooBig},
		"meta without structured":   {optSetMeta, metaQuery("base:allocation"), false, repErrInvalid},
		"meta of nothing":           {optSetMeta, append(lengthAnd("b"), 0, 0, 0, 0), true, repErrUnknown},
		"meta, queries beyond":      {optSetMeta, append(lengthAnd("a"), 255, 255, 255, 255), true, repErrInvalid},
		"meta, something behind":    {optListMeta, append(metaQuery("base:"), 1), true, repErrInvalid},
		"meta without a namespace":  {optSetMeta, metaQuery("base"), true, repErrInvalid},
		"meta of another namespace": {optSetMeta, metaQuery("x-a:b"), true, repAck},
		"abort":                     {optAbort, nil, false, repAck},
	} {
		c := newScript(flagFixedNewstyle | flagNoZeroes)
		replies := 1
		if tt.structured {
			c.option(optStructuredReply)
			replies++
		}
		c.option(tt.opt, tt.data...)
		s().ServeConn(t.Context(), c)
		out := c.out.Bytes()[18:]
		for range replies - 1 {
			out = out[20:]
		}
		if len(out) < 20 || be.Uint64(out) != magicOptReply || be.Uint32(out[8:]) != tt.opt || be.Uint32(out[12:]) != tt.want {
			t.Errorf("%s: answered %x, want %#x", name, out, tt.want)
		}
	}
	// What cannot be answered is cut off.
	for name, c := range map[string]*script{
		"client flags":         {in: []byte{0, 0, 0, 8}},
		"magic":                {in: append([]byte{0, 0, 0, 3}, "IHAVENOTHING0000"...)},
		"no export":            {in: append(optionBytes([]byte{0, 0, 0, 3}, optExportName, 1), 'b')},
		"not fixed newstyle":   {in: optionBytes([]byte{0, 0, 0, 0}, optList, 0)},
		"gigantic option":      {in: optionBytes([]byte{0, 0, 0, 3}, optList, 1<<31)},
		"too many options":     {in: append([]byte{0, 0, 0, 3}, bytes.Repeat(optionBytes(nil, optList, 0), maxOptions+1)...)},
		"half an option":       {in: optionBytes([]byte{0, 0, 0, 3}, optList, 100)},
		"half a client's flag": {in: []byte{0, 0}},
	} {
		var refused *refusedError
		if err := s().ServeConn(t.Context(), c); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExportName(t *testing.T) {
	for flags, n := range map[uint32]int{0: 134, flagFixedNewstyle: 134, flagFixedNewstyle | flagNoZeroes: 10} {
		c := newScript(flags)
		c.option(optExportName, 'a')
		c.request(request{typ: cmdDisc})
		s := &Server{Exports: []Export{{Name: "a", Device: newMem(1000)}}}
		if err := s.ServeConn(t.Context(), c); err != nil {
			t.Error(err)
		}
		if out := c.out.Bytes()[18:]; len(out) != n || be.Uint64(out) != 1000 || out[9]&(tfHasFlags|tfFlush|tfFUA) != tfHasFlags|tfFlush|tfFUA {
			t.Errorf("flags %d: answered %x", flags, out)
		}
	}
}

// Each request that must not be is answered with the right error, and the connection goes on.
func TestWrongRequests(t *testing.T) {
	const size = 1 << 20
	for _, tt := range []struct {
		name string
		q    request
		ro   bool
		want syscall.Errno
	}{
		{"good", request{typ: cmdRead, len: 10}, false, 0},
		{"empty read", request{typ: cmdRead, off: size}, false, 0},
		{"read beyond", request{typ: cmdRead, off: size - 5, len: 10}, false, syscall.EINVAL},
		{"read far beyond", request{typ: cmdRead, off: 1<<64 - 5, len: 10}, false, syscall.EINVAL},
		{"read too long", request{typ: cmdRead, len: 1 << 20, off: 0}, false, syscall.EINVAL},
		{"read unfragmented too long", request{typ: cmdRead, flags: flagDF, len: 1 << 20}, false, syscall.EOVERFLOW},
		{"read with a wrong flag", request{typ: cmdRead, flags: NoHole, len: 10}, false, syscall.EINVAL},
		{"read with an unknown flag", request{typ: cmdRead, flags: 1 << 9, len: 10}, false, syscall.EINVAL},
		{"write beyond", request{typ: cmdWrite, off: size - 5, len: 10}, false, syscall.ENOSPC},
		{"write far beyond", request{typ: cmdWrite, off: 1 << 63, len: 10}, false, syscall.ENOSPC},
		{"write too long", request{typ: cmdWrite, len: 1 << 20}, false, syscall.EINVAL},
		{"write with a wrong flag", request{typ: cmdWrite, flags: flagReqOne, len: 10}, false, syscall.EINVAL},
		{"write to what is read-only", request{typ: cmdWrite, len: 10}, true, syscall.EPERM},
		{"trim not offered", request{typ: cmdTrim, len: 10}, false, syscall.EINVAL},
		{"trim of what is read-only", request{typ: cmdTrim, len: 10}, true, syscall.EPERM},
		{"cache not offered", request{typ: cmdCache, len: 10}, false, syscall.EINVAL},
		{"zero beyond", request{typ: cmdWriteZeroes, off: 1, len: size}, false, syscall.ENOSPC},
		{"fast zero not offered", request{typ: cmdWriteZeroes, flags: FastZero, len: 10}, false, syscall.EINVAL},
		{"zero what is read-only", request{typ: cmdWriteZeroes, len: 10}, true, syscall.EPERM},
		{"flush with a range", request{typ: cmdFlush, len: 10}, false, syscall.EINVAL},
		{"status not agreed on", request{typ: cmdBlockStatus, len: 10}, false, syscall.EINVAL},
		{"unknown", request{typ: 8, len: 10}, false, syscall.EINVAL},
		{"far unknown", request{typ: 65535}, false, syscall.EINVAL},
	} {
		s := &Server{Exports: []Export{{Device: newMem(size), ReadOnly: tt.ro, MaxPayload: 64 << 10}}}
		c := newScript(flagFixedNewstyle | flagNoZeroes)
		c.option(optStructuredReply)
		c.option(optExportName)
		tt.q.cookie = 0x1122334455667788
		var payload []byte
		if tt.q.typ == cmdWrite {
			payload = make([]byte, tt.q.len)
		}
		c.request(tt.q, payload...)
		c.request(request{typ: cmdRead, len: 4, cookie: 99})
		c.request(request{typ: cmdDisc})
		if err := s.ServeConn(t.Context(), c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := syscall.Errno(0)
		out := c.out.Bytes()[18+20+10:]
		if len(out) < structuredLen || be.Uint64(out[8:]) != tt.q.cookie || out[5]&chunkDone == 0 {
			t.Errorf("%s: answered %x", tt.name, out)
			continue
		}
		n := structuredLen + int(be.Uint32(out[16:]))
		if be.Uint16(out[6:]) == chunkError {
			got = syscall.Errno(be.Uint32(out[structuredLen:]))
		}
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if out = out[n:]; len(out) != structuredLen+8+4 || be.Uint64(out[8:]) != 99 {
			t.Errorf("%s: the next request is answered with %x", tt.name, out)
		}
	}
	for name, in := range map[string][]byte{
		"magic":               bytes.Repeat([]byte{1}, requestLen),
		"a write of 4 GiB":    appendRequest(nil, request{typ: cmdWrite, len: 1<<32 - 1}),
		"half a request":      appendRequest(nil, request{typ: cmdRead, len: 1})[:20],
		"half a payload":      append(appendRequest(nil, request{typ: cmdWrite, len: 100}), "abc"...),
		"half a long payload": append(appendRequest(nil, request{typ: cmdWrite, len: 1 << 20}), make([]byte, 300_000)...),
	} {
		dev := newMem(size)
		c := newScript(flagFixedNewstyle | flagNoZeroes)
		c.option(optExportName)
		c.in = append(c.in, in...)
		if err := (&Server{Exports: []Export{{Device: dev}}}).ServeConn(t.Context(), c); err == nil || errors.As(err, new(*refusedError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHandshakeTimeout(t *testing.T) {
	failed := make(chan error, 1)
	sock := serve(t, &Server{Exports: []Export{{Device: newMem(10)}}, HandshakeTimeout: 30 * time.Millisecond,
		Failed: func(_ net.Addr, err error) { failed <- err }})
	conn := rawDial(t, sock)
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Error(err)
	}
	if err := <-failed; !strings.Contains(err.Error(), "timeout") {
		t.Errorf("reason is %v", err)
	}
}

// A client that waits, in a process dedicated to serving, does not keep the runtime from stopping the world.
func TestDedicatedWaits(t *testing.T) {
	c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: newMem(1 << 20)}}, Dedicated: true}), ""))
	b := make([]byte, 4096)
	for range 50 {
		if _, err := c.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		runtime.GC()
	}
}

func FuzzServer(f *testing.F) {
	full := newScript(flagFixedNewstyle | flagNoZeroes)
	full.option(optList)
	full.option(optStructuredReply)
	full.option(optSetMeta, append(append(lengthAnd("a"), 0, 0, 0, 1), lengthAnd(allocationContext)...)...)
	full.option(optGo, append(lengthAnd("a"), 0, 1, 0, infoBlockSize)...)
	for typ := range uint16(9) {
		if typ != cmdDisc {
			full.request(request{typ: typ, off: 512, len: 700}, make([]byte, map[bool]int{true: 700}[typ == cmdWrite])...)
		}
	}
	full.request(request{typ: cmdFlush, flags: FUA})
	full.request(request{typ: cmdDisc})
	f.Add(full.in)
	plain := newScript(0)
	plain.option(optExportName)
	plain.request(request{typ: cmdWrite, off: 100_000, len: 3000}, make([]byte, 3000)...)
	plain.request(request{typ: cmdRead, off: 100_000, len: 40_000})
	f.Add(plain.in)
	file, _ := imageFile(f, 256<<10)
	d, err := OpenFile(file, false)
	if err != nil {
		f.Fatal(err)
	}
	defer d.Close()
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &Server{Exports: []Export{{Name: "a", Device: d}, {Name: "m", Device: &memDisk{data: make([]byte, 1000)}, MinBlock: 8, MaxPayload: 64}}}
		c := &script{in: in}
		if err := s.ServeConn(context.Background(), c); err == nil && len(in) > 0 && len(in) < 4 {
			t.Errorf("%x is as good as a goodbye", in)
		}
		// Zeroes and reads are answered with at most what was asked for; a session as short as this asks for little.
		if most := 4096 + 32<<20*(len(in)/requestLen+1); c.out.Len() > most {
			t.Errorf("%d bytes are answered with %d", len(in), c.out.Len())
		}
	})
}

func FuzzClientHandshake(f *testing.F) {
	good := be.AppendUint64(nil, magicInit)
	good = be.AppendUint64(good, magicOption)
	good = be.AppendUint16(good, 3)
	rep := func(opt, typ uint32, data ...byte) {
		good = be.AppendUint64(good, magicOptReply)
		good = be.AppendUint32(good, opt)
		good = be.AppendUint32(good, typ)
		good = append(be.AppendUint32(good, uint32(len(data))), data...)
	}
	rep(optStructuredReply, repAck)
	rep(optSetMeta, repMeta, append([]byte{0, 0, 0, 1}, allocationContext...)...)
	rep(optSetMeta, repAck)
	rep(optGo, repInfo, 0, infoBlockSize, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0)
	rep(optGo, repInfo, 0, infoExport, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0xff)
	rep(optGo, repAck)
	f.Add(good)
	f.Fuzz(func(t *testing.T, in []byte) {
		h := &hail{conn: &script{in: in}}
		if err := h.enter(context.Background(), "a", nil); err != nil {
			return
		}
		if i := h.info; i.Size < 0 || i.MinBlock < 1 || i.MinBlock&(i.MinBlock-1) != 0 || i.MaxPayload < i.MinBlock || i.MaxPayload > defaultPayload {
			t.Errorf("believed %+v", i)
		}
	})
}

func FuzzClientReplies(f *testing.F) {
	b := appendChunk(nil, 0, chunkHole, 1, 12)
	b = be.AppendUint32(be.AppendUint64(b, 4096), 100)
	b = be.AppendUint64(appendChunk(b, 0, chunkData, 1, 8+900), 4196)
	b = append(b, make([]byte, 900)...)
	b = appendChunk(b, chunkDone, chunkNone, 1, 0)
	b = append(appendChunk(b, chunkDone, chunkStatus, 2, 20), 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 3, 0, 0, 3, 0, 0, 0, 0, 0)
	b = append(appendChunk(b, chunkDone, chunkErrorOffset, 3, 15), 0, 0, 0, 5, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 16, 0)
	f.Add(b)
	f.Add(append(appendSimple(appendSimple(nil, syscall.EIO, 1), 0, 3), appendSimple(nil, 0, 2)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, structured := range []bool{true, false} {
			c := &Client{calls: map[uint64]*call{}, metaID: 1, info: Info{Structured: structured}}
			var calls []*call
			for i, q := range []request{{typ: cmdRead, off: 4096, len: 1000}, {typ: cmdBlockStatus, off: 4096, len: 1000}, {typ: cmdWrite, off: 4096, len: 1000}} {
				q.cookie = uint64(i + 1)
				k := &call{q: q, done: make(chan struct{}), max: 5}
				if q.typ == cmdRead {
					k.buf = make([]byte, 1000)
				}
				c.calls[q.cookie] = k
				calls = append(calls, k)
			}
			r := newReader(&connStream{&script{in: in}}, 64<<10)
			for c.reply(r) == nil {
			}
			for _, k := range calls {
				select {
				case <-k.done:
				default:
					continue
				}
				if k.err != nil {
					continue
				}
				if structured && k.q.typ == cmdRead && !k.got.all(1000) {
					t.Error("a read succeeded without all of its data")
				}
				var sum int64
				for _, e := range k.exts {
					sum += e.Len
				}
				if k.q.typ == cmdBlockStatus && (len(k.exts) < 1 || len(k.exts) > 5 || sum > 1000) {
					t.Errorf("block status is %v", k.exts)
				}
			}
		}
	})
}

func TestSpans(t *testing.T) {
	var s spans
	for i, tt := range []struct {
		off, n int
		want   bool
	}{{10, 10, true}, {0, 5, true}, {5, 6, false}, {5, 5, true}, {19, 1, false}, {15, 1, false}, {25, 5, true}, {20, 5, true}, {0, 1, false}} {
		if got := s.add(tt.off, tt.n); got != tt.want {
			t.Errorf("%d: add(%d, %d) is %v with %v", i, tt.off, tt.n, got, s)
		}
	}
	if !s.all(30) || s.all(31) {
		t.Errorf("spans are %v", s)
	}
}
