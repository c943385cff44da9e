package nbd

import "io"

// Payload is the data of one write request, still on its way from the client. It is used by one goroutine.
//
// Small payloads have often come together with their header and lie in the connection's buffer: Next then gives them in
// place. Large ones are in the socket: Read receives straight into the caller's memory.
type Payload struct {
	r *reader
	n int // not yet taken
}

// Len is the number of bytes that were not taken yet.
func (p *Payload) Len() int { return p.n }

// Read fills b with what comes next: len(b) bytes, or less only at the payload's end. It is io.EOF when nothing is left.
// Any other error has ended the connection.
func (p *Payload) Read(b []byte) (int, error) {
	if p.n == 0 {
		return 0, io.EOF
	}
	if len(b) > p.n {
		b = b[:p.n]
	}
	if err := p.r.readFull(b); err != nil {
		p.n = 0
		return 0, err
	}
	p.n -= len(b)
	return len(b), nil
}

// Next gives the next bytes in the connection's own buffer, at least one and at most max, without a copy where they are
// there already. They are valid until the next call of a method of p. It is io.EOF when nothing is left.
func (p *Payload) Next(max int) ([]byte, error) {
	if p.n == 0 {
		return nil, io.EOF
	}
	b, err := p.r.next(min(max, p.n))
	if err != nil {
		p.n = 0
		return nil, err
	}
	p.n -= len(b)
	return b, nil
}

// Discard drops all that was not taken.
func (p *Payload) Discard() error {
	n := p.n
	p.n = 0
	return p.r.discard(n)
}
