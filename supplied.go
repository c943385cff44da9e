package vmscope

import (
	"context"
	"fmt"

	"vmscope/kernel/linux"
	"vmscope/kernel/linux/profile"
)

// files reads what the options name, and looks for profiles made ahead in the
// user's cache.
func (o *options) files(ctx context.Context) (f linux.Files, err error) {
	if o.types != "" {
		if f.Types, err = profile.Open(ctx, o.types); err != nil {
			return f, fmt.Errorf("types: %w", err)
		}
		if f.Types.Types == nil {
			return f, fmt.Errorf("types: %s tells symbols only (%s): it is one for --sysmap: %w", o.types, f.Types.Format, profile.ErrFormat)
		}
	}
	if o.systemMap != "" {
		if f.Symbols, err = profile.Open(ctx, o.systemMap); err != nil {
			return f, fmt.Errorf("symbols: %w", err)
		}
		if f.Symbols.Symbols == nil {
			return f, fmt.Errorf("symbols: %s tells none (%s): %w", o.systemMap, f.Symbols.Format, profile.ErrFormat)
		}
	}
	if cache, err := profile.UserCache(); err == nil { // no home, no cache
		f.Ahead = func(id string) (*profile.Profile, error) { return cache.Load(context.WithoutCancel(ctx), id) }
	}
	return f, nil
}
