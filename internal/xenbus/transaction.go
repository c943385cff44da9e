package xenbus

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"
)

// Tx is a transaction: what is read in it belongs together, and what is written in it comes into being at once. It is for
// one goroutine, and only until the function that got it returns.
type Tx struct {
	c  *Client
	id uint32
}

// maxTries bounds how often a transaction is done anew that others got in the way of.
const maxTries = 100

// Transaction calls f, and once more as long as others changed in the meantime what f had read. What f wrote is void if it
// returns an error. One transaction of a client goes on at a time; its other calls need not wait.
func (c *Client) Transaction(ctx context.Context, f func(*Tx) error) error {
	select {
	case c.begin <- struct{}{}:
		defer func() { <-c.begin }()
	case <-ctx.Done():
		return &Error{opNames[opBegin], "", context.Cause(ctx)}
	}
	var err error
	for range maxTries {
		if err = c.try(ctx, f); !errors.Is(err, errConflict) {
			return err
		}
	}
	return &Error{opNames[opEnd], "", syscall.EAGAIN}
}

var errConflict = errors.New("xenstore: the transaction is to be done anew")

func (c *Client) try(ctx context.Context, f func(*Tx) error) error {
	// An answer that nobody waits for would leave a transaction that nobody ends.
	b, err := c.call(context.WithoutCancel(ctx), opBegin, 0, "", []byte{0})
	if err != nil {
		return err
	}
	id, err := strconv.ParseUint(strings.TrimRight(string(b), "\x00"), 10, 32)
	if err != nil || id == 0 {
		return &Error{opNames[opBegin], "", ErrProtocol}
	}
	verdict := "F"
	ferr := errors.New("the function did not return")
	defer func() { // also where f panics
		if ferr != nil {
			c.call(context.WithoutCancel(ctx), opEnd, uint32(id), "", []byte(verdict+"\x00"))
		}
	}()
	if ferr = f(&Tx{c, uint32(id)}); ferr != nil {
		return ferr
	}
	verdict = "T"
	_, err = c.call(context.WithoutCancel(ctx), opEnd, uint32(id), "", []byte(verdict+"\x00"))
	if errors.Is(err, syscall.EAGAIN) {
		return errConflict
	}
	return err
}

// Read is Client.Read in the transaction.
func (t *Tx) Read(ctx context.Context, path string) (string, error) { return t.c.read(ctx, t.id, path) }

// List is Client.List in the transaction.
func (t *Tx) List(ctx context.Context, path string) ([]string, error) {
	return t.c.list(ctx, t.id, path)
}

// Write is Client.Write in the transaction.
func (t *Tx) Write(ctx context.Context, path, value string) error {
	_, err := t.c.on(ctx, opWrite, t.id, path, []byte(value))
	return err
}

// Remove is Client.Remove in the transaction.
func (t *Tx) Remove(ctx context.Context, path string) error {
	_, err := t.c.on(ctx, opRemove, t.id, path, nil)
	return err
}
