// Every op of this family in C++, a namespace each.
#pragma once
#include "gate_up.hpp"
#include "linear.hpp"
#include "projections.hpp"
