package redial_test

import "testing"

func TestConform_H1_HooksSeeNoMarks(t *testing.T)         { testActs(t, "look") }
func TestConform_H2_HooksMayServe(t *testing.T)           { testActs(t, "serve") }
func TestConform_H9_HooksMayRefuse(t *testing.T)          { testActs(t, "refuse") }
func TestConform_H3_HooksMayDecideAfterNext(t *testing.T) { testActs(t, "after") }
func TestConform_Hooks_MayReshape(t *testing.T)           { testActs(t, "reshape") }
func TestConform_Hooks_Panics(t *testing.T)               { testActs(t, "panic") }
